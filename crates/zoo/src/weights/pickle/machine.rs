//! The stack machine: from the bytes of a pickle to its nodes.

use super::super::error::Reason;
use super::opcode as op;
use super::{Id, Node, Pickle};
use std::collections::HashMap;
use std::io::Read;

/// More objects than any state dict or training checkpoint holds; bounds the memory a hostile file takes.
const MAX_NODES: usize = 1 << 22;

/// Longest module or class name that is accepted, in bytes.
const MAX_NAME: usize = 4096;

/// Reads one pickle from `reader`, which has `length` bytes left, up to and including its STOP opcode.
/// Returns the number of bytes read as well.
pub(in crate::weights) fn read(reader: &mut impl Read, length: u64) -> Result<(Pickle, u64), Reason> {
    let input = Input { reader, position: 0, length };
    let mut machine = Machine {
        input,
        nodes: Vec::new(),
        stack: Vec::new(),
        marks: Vec::new(),
        memo: HashMap::new(),
        copied: 0,
    };
    while machine.step()? {}
    let root = machine.pop()?;
    Ok((Pickle { nodes: machine.nodes, root }, machine.input.position))
}

/// A reader that knows how much is left, so that no length in the file is trusted.
struct Input<'r, R> {
    reader: &'r mut R,
    position: u64,
    length: u64,
}

impl<R: Read> Input<'_, R> {
    fn array<const N: usize>(&mut self) -> Result<[u8; N], Reason> {
        let mut bytes = [0; N];
        self.claim(N as u64)?;
        self.reader.read_exact(&mut bytes).map_err(|error| Reason::reading(error, "its pickle"))?;
        Ok(bytes)
    }

    fn byte(&mut self) -> Result<u8, Reason> {
        Ok(self.array::<1>()?[0])
    }

    fn u32(&mut self) -> Result<u32, Reason> {
        Ok(u32::from_le_bytes(self.array()?))
    }

    fn bytes(&mut self, len: u64) -> Result<Vec<u8>, Reason> {
        self.claim(len)?;
        let mut bytes = vec![0; len as usize];
        self.reader.read_exact(&mut bytes).map_err(|error| Reason::reading(error, "its pickle"))?;
        Ok(bytes)
    }

    /// A line without its line feed.
    fn line(&mut self) -> Result<String, Reason> {
        let mut line = Vec::new();
        loop {
            match self.byte()? {
                b'\n' => return Ok(String::from_utf8_lossy(&line).into_owned()),
                _ if line.len() == MAX_NAME => {
                    return Err(Reason::malformed("a class name without end in its pickle"));
                }
                byte => line.push(byte),
            }
        }
    }

    fn claim(&mut self, len: u64) -> Result<(), Reason> {
        if len > self.length - self.position {
            return Err(Reason::truncated("its pickle"));
        }
        self.position += len;
        Ok(())
    }
}

struct Machine<'r, R> {
    input: Input<'r, R>,
    nodes: Vec<Node>,
    stack: Vec<Id>,
    /// Heights of the stack at which a MARK lies.
    marks: Vec<usize>,
    memo: HashMap<u32, Id>,
    /// Dict items copied from lists. They count as nodes, or one list given to many calls would fill the memory.
    copied: usize,
}

impl<R: Read> Machine<'_, R> {
    /// Runs one opcode; false at the end of the program.
    fn step(&mut self) -> Result<bool, Reason> {
        let position = self.input.position;
        match self.input.byte()? {
            // PROTO and FRAME announce; what they announce is known without them.
            op::PROTO => drop(self.input.byte()?),
            op::FRAME => drop(self.input.array::<8>()?),
            op::STOP => return Ok(false),

            op::NONE | op::NEWTRUE | op::NEWFALSE => self.push(Node::Opaque)?,
            op::BININT1 => {
                let value = self.input.byte()?;
                self.push(Node::Int(value.into()))?;
            }
            op::BININT2 => {
                let value = u16::from_le_bytes(self.input.array()?);
                self.push(Node::Int(value.into()))?;
            }
            op::BININT => {
                let value = i32::from_le_bytes(self.input.array()?);
                self.push(Node::Int(value.into()))?;
            }
            op::LONG1 => {
                let len = self.input.byte()?.into();
                self.long(len)?;
            }
            op::LONG4 => {
                let len = self.input.u32()?.into();
                self.long(len)?;
            }
            op::BINFLOAT => {
                self.input.array::<8>()?;
                self.push(Node::Opaque)?;
            }

            // BINSTRING and SHORT_BINSTRING are the str of Python 2.
            op::BINUNICODE | op::BINSTRING => {
                let len = self.input.u32()?.into();
                self.string(len)?;
            }
            op::SHORT_BINUNICODE | op::SHORT_BINSTRING => {
                let len = self.input.byte()?.into();
                self.string(len)?;
            }
            op::BINUNICODE8 => {
                let len = u64::from_le_bytes(self.input.array()?);
                self.string(len)?;
            }
            op::BINBYTES => {
                let len = self.input.u32()?.into();
                self.opaque_bytes(len)?;
            }
            op::SHORT_BINBYTES => {
                let len = self.input.byte()?.into();
                self.opaque_bytes(len)?;
            }
            op::BINBYTES8 | op::BYTEARRAY8 => {
                let len = u64::from_le_bytes(self.input.array()?);
                self.opaque_bytes(len)?;
            }

            op::MARK => self.marks.push(self.stack.len()),
            op::POP if self.marks.last() == Some(&self.stack.len()) => drop(self.marks.pop()),
            op::POP => drop(self.pop()?),
            op::POP_MARK => drop(self.pop_to_mark()?),
            op::DUP => {
                let top = self.top()?;
                self.stack.push(top);
            }

            op::EMPTY_TUPLE => self.push(Node::Tuple(Vec::new()))?,
            op::TUPLE1 => self.short_tuple(1)?,
            op::TUPLE2 => self.short_tuple(2)?,
            op::TUPLE3 => self.short_tuple(3)?,
            op::TUPLE => {
                let items = self.pop_to_mark()?;
                self.push(Node::Tuple(items))?;
            }
            op::EMPTY_LIST => self.push(Node::List(Vec::new()))?,
            op::LIST => {
                let items = self.pop_to_mark()?;
                self.push(Node::List(items))?;
            }
            op::APPEND => {
                let item = self.pop()?;
                self.extend_list(&[item])?;
            }
            op::APPENDS => {
                let items = self.pop_to_mark()?;
                self.extend_list(&items)?;
            }
            op::EMPTY_DICT => self.push(Node::Dict(Vec::new()))?,
            op::DICT => {
                let items = self.pop_to_mark()?;
                self.push(Node::Dict(Vec::new()))?;
                self.extend_dict(&items)?;
            }
            op::SETITEM => {
                let value = self.pop()?;
                let key = self.pop()?;
                self.extend_dict(&[key, value])?;
            }
            op::SETITEMS => {
                let items = self.pop_to_mark()?;
                self.extend_dict(&items)?;
            }
            op::EMPTY_SET => self.push(Node::Opaque)?,
            op::ADDITEMS => drop(self.pop_to_mark()?),
            op::FROZENSET => {
                self.pop_to_mark()?;
                self.push(Node::Opaque)?;
            }

            op::BINPUT => {
                let key = self.input.byte()?.into();
                self.memoize(key)?;
            }
            op::LONG_BINPUT => {
                let key = self.input.u32()?;
                self.memoize(key)?;
            }
            op::MEMOIZE => self.memoize(self.memo.len() as u32)?,
            op::BINGET => {
                let key = self.input.byte()?.into();
                self.recall(key)?;
            }
            op::LONG_BINGET => {
                let key = self.input.u32()?;
                self.recall(key)?;
            }

            op::GLOBAL => {
                let module = self.input.line()?;
                let module = self.add(Node::Str(module))?;
                let name = self.input.line()?;
                let name = self.add(Node::Str(name))?;
                self.push(Node::Global { module, name })?;
            }
            op::STACK_GLOBAL => self.stack_global()?,
            op::REDUCE | op::NEWOBJ => {
                let args = self.pop()?;
                let callable = self.pop()?;
                self.call(callable, args)?;
            }
            op::NEWOBJ_EX => {
                // NEWOBJ_EX: the keyword arguments are of no interest.
                self.pop()?;
                let args = self.pop()?;
                let callable = self.pop()?;
                self.call(callable, args)?;
            }
            op::OBJ => {
                let mut items = self.pop_to_mark()?;
                if items.is_empty() {
                    return Err(self.broken("an object without a class"));
                }
                let callable = items.remove(0);
                self.push(Node::Tuple(items))?;
                let args = self.pop()?;
                self.call(callable, args)?;
            }
            // BUILD sets attributes, such as the `_metadata` of a state dict: none is needed.
            op::BUILD => {
                self.pop()?;
                self.top()?;
            }
            op::BINPERSID => {
                let id = self.pop()?;
                self.push(Node::Persistent(id))?;
            }
            opcode => {
                return Err(Reason::unsupported(format!("pickle opcode 0x{opcode:02x} at byte {position}")));
            }
        }
        Ok(true)
    }

    fn broken(&self, problem: &str) -> Reason {
        Reason::malformed(format!("{problem} before byte {} of its pickle", self.input.position))
    }

    fn add(&mut self, node: Node) -> Result<Id, Reason> {
        if self.nodes.len() + self.copied >= MAX_NODES {
            return Err(Reason::unsupported(format!("a pickle of more than {MAX_NODES} objects")));
        }
        self.nodes.push(node);
        Ok((self.nodes.len() - 1) as Id)
    }

    fn push(&mut self, node: Node) -> Result<(), Reason> {
        let id = self.add(node)?;
        self.stack.push(id);
        Ok(())
    }

    /// The top of the stack, which a mark may hide.
    fn top(&self) -> Result<Id, Reason> {
        match self.stack.last() {
            Some(&id) if self.stack.len() > self.marks.last().copied().unwrap_or(0) => Ok(id),
            _ => Err(self.broken("an empty stack")),
        }
    }

    fn pop(&mut self) -> Result<Id, Reason> {
        let id = self.top()?;
        self.stack.pop();
        Ok(id)
    }

    fn pop_to_mark(&mut self) -> Result<Vec<Id>, Reason> {
        match self.marks.pop() {
            Some(height) => Ok(self.stack.split_off(height)),
            None => Err(self.broken("a missing mark")),
        }
    }

    fn long(&mut self, len: u64) -> Result<(), Reason> {
        let bytes = self.input.bytes(len)?;
        if bytes.len() > 8 {
            return self.push(Node::Long(bytes));
        }
        let negative = bytes.last().is_some_and(|&byte| byte >= 0x80);
        let mut extended = if negative { [0xff; 8] } else { [0; 8] };
        extended[..bytes.len()].copy_from_slice(&bytes);
        self.push(Node::Int(i64::from_le_bytes(extended)))
    }

    fn string(&mut self, len: u64) -> Result<(), Reason> {
        let bytes = self.input.bytes(len)?;
        self.push(Node::Str(String::from_utf8_lossy(&bytes).into_owned()))
    }

    fn opaque_bytes(&mut self, len: u64) -> Result<(), Reason> {
        self.input.bytes(len)?;
        self.push(Node::Opaque)
    }

    fn short_tuple(&mut self, len: usize) -> Result<(), Reason> {
        let mut items = vec![0; len];
        for item in items.iter_mut().rev() {
            *item = self.pop()?;
        }
        self.push(Node::Tuple(items))
    }

    fn extend_list(&mut self, items: &[Id]) -> Result<(), Reason> {
        let id = self.top()?;
        match &mut self.nodes[id as usize] {
            Node::List(list) => list.extend_from_slice(items),
            // An instance of a list's subclass, or a set.
            Node::Call { .. } | Node::Opaque => {}
            _ => return Err(self.broken("items for something that is no list")),
        }
        Ok(())
    }

    fn extend_dict(&mut self, items: &[Id]) -> Result<(), Reason> {
        let (pairs, rest) = items.as_chunks::<2>();
        if !rest.is_empty() {
            return Err(self.broken("a key without a value"));
        }
        let id = self.top()?;
        match &mut self.nodes[id as usize] {
            Node::Dict(dict) => dict.extend(pairs.iter().map(|&[key, value]| (key, value))),
            Node::Call { .. } => {}
            _ => return Err(self.broken("entries for something that is no dict")),
        }
        Ok(())
    }

    fn memoize(&mut self, key: u32) -> Result<(), Reason> {
        let id = self.top()?;
        self.memo.insert(key, id);
        Ok(())
    }

    fn recall(&mut self, key: u32) -> Result<(), Reason> {
        match self.memo.get(&key) {
            Some(&id) => {
                self.stack.push(id);
                Ok(())
            }
            None => Err(self.broken("a reference to nothing")),
        }
    }

    fn stack_global(&mut self) -> Result<(), Reason> {
        let name = self.pop()?;
        let module = self.pop()?;
        match (&self.nodes[module as usize], &self.nodes[name as usize]) {
            (Node::Str(_), Node::Str(_)) => self.push(Node::Global { module, name }),
            _ => Err(self.broken("a class without a name")),
        }
    }

    /// Pushes a dict where a dict is made, else the record of the call.
    fn call(&mut self, callable: Id, args: Id) -> Result<(), Reason> {
        if !self.is_dict_class(callable) {
            return self.push(Node::Call { callable, args });
        }
        // Python 2 gives an OrderedDict its items as a list of [key, value] lists; Python 3 sets them later.
        let mut items = Vec::new();
        if let Node::Tuple(args) = &self.nodes[args as usize]
            && let Some(&list) = args.first()
            && let Node::List(pairs) = &self.nodes[list as usize]
        {
            self.copied += pairs.len();
            for &pair in pairs {
                if let Node::List(pair) | Node::Tuple(pair) = &self.nodes[pair as usize]
                    && let &[key, value] = pair.as_slice()
                {
                    items.push((key, value));
                }
            }
        }
        self.push(Node::Dict(items))
    }

    fn is_dict_class(&self, callable: Id) -> bool {
        let Node::Global { module, name } = self.nodes[callable as usize] else { return false };
        let is =
            |id: Id, expected: &str| matches!(&self.nodes[id as usize], Node::Str(text) if text == expected);
        is(module, "collections") && (is(name, "OrderedDict") || is(name, "defaultdict"))
    }
}
