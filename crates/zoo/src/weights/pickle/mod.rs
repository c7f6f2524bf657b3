//! A reader of Python pickles that builds data and nothing else.
//!
//! A pickle is a program for a stack machine. This interpreter knows its data opcodes (protocols 1 to 5, as
//! in CPython's `Lib/pickletools.py`); where the program asks for a call, the call is recorded as a node and
//! never made, so a hostile file can only produce an odd tree. Nodes live in one vector and refer to each
//! other by index: cycles, deep nesting and shared objects cost nothing to build or to drop.

mod machine;
mod opcode;

pub(super) use machine::read;

/// Index of a node.
pub(super) type Id = u32;

/// One Python object.
#[derive(Debug)]
pub(super) enum Node {
    Int(i64),
    /// An integer of more than 64 bits, as the little-endian two's complement bytes of the file.
    Long(Vec<u8>),
    Str(String),
    Tuple(Vec<Id>),
    List(Vec<Id>),
    /// Also an `OrderedDict` or `defaultdict`: pairs in the order of insertion, repeated keys included.
    Dict(Vec<(Id, Id)>),
    /// A class or function, by two strings.
    Global {
        module: Id,
        name: Id,
    },
    /// The result of a call that was not made.
    Call {
        callable: Id,
        args: Id,
    },
    /// An object that lies outside of the pickle, under the id given by this node.
    Persistent(Id),
    /// A value that no tensor depends on: None, booleans, floats, bytes, sets.
    Opaque,
}

/// The objects of one pickle.
#[derive(Debug)]
pub(super) struct Pickle {
    nodes: Vec<Node>,
    root: Id,
}

impl Pickle {
    pub(super) fn root(&self) -> Id {
        self.root
    }

    pub(super) fn node(&self, id: Id) -> &Node {
        &self.nodes[id as usize]
    }

    /// All nodes in the order of their creation.
    pub(super) fn nodes(&self) -> &[Node] {
        &self.nodes
    }

    pub(super) fn str(&self, id: Id) -> Option<&str> {
        match self.node(id) {
            Node::Str(text) => Some(text),
            _ => None,
        }
    }

    pub(super) fn tuple(&self, id: Id) -> Option<&[Id]> {
        match self.node(id) {
            Node::Tuple(items) => Some(items),
            _ => None,
        }
    }

    /// A non-negative integer.
    pub(super) fn index(&self, id: Id) -> Option<usize> {
        match self.node(id) {
            Node::Int(value) => usize::try_from(*value).ok(),
            _ => None,
        }
    }

    /// A tuple (or list) of non-negative integers, as sizes and strides are.
    pub(super) fn indices(&self, id: Id) -> Option<Vec<usize>> {
        match self.node(id) {
            Node::Tuple(items) | Node::List(items) => items.iter().map(|&item| self.index(item)).collect(),
            _ => None,
        }
    }

    /// Module and name of a class or function.
    pub(super) fn global(&self, id: Id) -> Option<(&str, &str)> {
        match self.node(id) {
            Node::Global { module, name } => Some((self.str(*module)?, self.str(*name)?)),
            _ => None,
        }
    }
}
