//! From the tree of a pickle to the names and tensors of its state dict.

use super::super::element::View;
use super::super::error::{Reason, one_line};
use super::super::pickle::{Id, Node, Pickle};
use super::{StorageRef, TensorRef};

/// Keys under which training scripts keep the state dict in their checkpoints, best first.
const WRAPPERS: [&str; 12] = [
    "state_dict",
    "model_state_dict",
    "model",
    "net",
    "network",
    "net_state_dict",
    "module",
    "weights",
    "params",
    "model_ema",
    "state_dict_ema",
    "ema",
];

/// Deeper wrapping does not occur; bounds the walk through a file whose dicts contain themselves.
const MAX_WRAPPERS: usize = 4;

/// A parameter wraps a tensor, which a subclass may wrap once more.
const MAX_REBUILDS: usize = 4;

/// The named tensors of the state dict in `pickle`, which may lie in the dict of a checkpoint. Entries of
/// other types are left out.
pub(super) fn tensors(pickle: &Pickle) -> Result<Vec<(String, TensorRef)>, Reason> {
    let mut id = pickle.root();
    for _ in 0..MAX_WRAPPERS {
        let usual = || WRAPPERS.iter().find_map(|key| inner_dict(pickle, id, key));
        match usual().or_else(|| only_dict_of_tensors(pickle, id)) {
            Some(inner) => id = inner,
            None => break,
        }
    }
    let not_found = || Reason::NotAStateDict { found: describe(pickle, id) };
    let Node::Dict(items) = pickle.node(id) else { return Err(not_found()) };
    let mut tensors = Vec::new();
    for &(key, value) in items {
        if let Some(name) = pickle.str(key)
            && let Some(tensor) = tensor(pickle, name, value)?
        {
            tensors.push((name.to_string(), tensor));
        }
    }
    if tensors.is_empty() { Err(not_found()) } else { Ok(tensors) }
}

/// The storages that the pickle refers to, in the order of their first mention. Other references are left out.
pub(super) fn storages(pickle: &Pickle) -> Vec<StorageRef> {
    let ids = pickle.nodes().iter().filter_map(|node| match node {
        Node::Persistent(id) => Some(*id),
        _ => None,
    });
    ids.filter_map(|id| storage_of_id(pickle, id)).collect()
}

fn inner_dict(pickle: &Pickle, id: Id, key: &str) -> Option<Id> {
    let Node::Dict(items) = pickle.node(id) else { return None };
    // Of a repeated key the last one counts, as in Python.
    let (_, value) = items.iter().rev().find(|&&(name, _)| pickle.str(name) == Some(key))?;
    matches!(pickle.node(*value), Node::Dict(_)).then_some(*value)
}

/// The value of a dict without tensors that is the only one to be a dict with some.
fn only_dict_of_tensors(pickle: &Pickle, id: Id) -> Option<Id> {
    let Node::Dict(items) = pickle.node(id) else { return None };
    if has_tensors(pickle, id) {
        return None;
    }
    let mut dicts = items.iter().map(|&(_, value)| value).filter(|&value| has_tensors(pickle, value));
    let first = dicts.next()?;
    dicts.all(|other| other == first).then_some(first)
}

/// Whether this is a dict with a tensor under a name.
fn has_tensors(pickle: &Pickle, id: Id) -> bool {
    let Node::Dict(items) = pickle.node(id) else { return false };
    // What is no tensor after all is found when it is read.
    let rebuilt = |value: Id| match pickle.node(value) {
        Node::Call { callable, .. } => {
            matches!(pickle.global(*callable), Some((module, _)) if module.starts_with("torch."))
        }
        _ => false,
    };
    items.iter().any(|&(key, value)| pickle.str(key).is_some() && rebuilt(value))
}

fn describe(pickle: &Pickle, id: Id) -> String {
    match pickle.node(id) {
        Node::Dict(items) if items.is_empty() => "an empty dict".to_string(),
        Node::Dict(items) => {
            let names: Vec<String> =
                items.iter().take(5).filter_map(|&(key, _)| pickle.str(key)).map(one_line).collect();
            format!("a dict of {} entries without tensors ({})", items.len(), names.join(", "))
        }
        Node::Call { callable, .. } => match pickle.global(*callable) {
            Some(("torch._utils", _)) => "a single tensor".to_string(),
            Some((module, name)) => format!("an object of {}.{}", one_line(module), one_line(name)),
            // The legacy format keeps the classes of a module, with their source code, outside of the pickle.
            None if matches!(pickle.node(*callable), Node::Persistent(_)) => {
                "a whole pickled module".to_string()
            }
            None => "an object of an unknown class".to_string(),
        },
        Node::Persistent(_) => "a whole pickled module".to_string(),
        Node::List(_) | Node::Tuple(_) => "a list".to_string(),
        Node::Global { .. } => "a class".to_string(),
        Node::Int(_) | Node::Long(_) | Node::Str(_) | Node::Opaque => "a single value".to_string(),
    }
}

/// The tensor that the call at `id` would rebuild; `None` for an object of another kind.
fn tensor(pickle: &Pickle, name: &str, mut id: Id) -> Result<Option<TensorRef>, Reason> {
    let malformed = || Reason::tensor(name, "its description in the pickle is not torch's");
    for _ in 0..MAX_REBUILDS {
        let Node::Call { callable, args } = pickle.node(id) else { return Ok(None) };
        let (mut callable, mut args) = (*callable, *args);
        // _rebuild_from_type_v2(function, type, arguments of the function, state), of a tensor's subclass.
        if pickle.global(callable) == Some(("torch._tensor", "_rebuild_from_type_v2")) {
            let Some(&[function, _, inner, ..]) = pickle.tuple(args) else { return Err(malformed()) };
            (callable, args) = (function, inner);
        }
        let Some((module, function)) = pickle.global(callable) else { return Ok(None) };
        let args = pickle.tuple(args);
        match (module, function) {
            ("torch._utils", "_rebuild_tensor" | "_rebuild_tensor_v2") => {
                let Some(&[storage, offset, size, strides, ..]) = args else { return Err(malformed()) };
                return strided(pickle, name, storage, [offset, size, strides])?
                    .ok_or_else(malformed)
                    .map(Some);
            }
            ("torch._utils", "_rebuild_parameter" | "_rebuild_parameter_with_state")
            | ("torch.nn.parameter", "Parameter")
            | ("torch.autograd.variable", "Variable") => {
                let Some(&[data, ..]) = args else { return Err(malformed()) };
                id = data;
            }
            ("torch._utils", function) if function.starts_with("_rebuild") => {
                return Err(Reason::unsupported(format!(
                    "tensor `{}`, built by {}",
                    one_line(name),
                    one_line(function)
                )));
            }
            _ => return Ok(None),
        }
    }
    Err(malformed())
}

/// A tensor of `_rebuild_tensor(storage, offset, size, strides)`; `None` if the arguments are not such.
fn strided(pickle: &Pickle, name: &str, storage: Id, layout: [Id; 3]) -> Result<Option<TensorRef>, Reason> {
    let Node::Persistent(storage) = pickle.node(storage) else { return Ok(None) };
    let Some(storage) = storage_of_id(pickle, *storage) else { return Ok(None) };
    let Some(element) = storage.element() else {
        return Err(Reason::dtype(name, &storage.class));
    };
    let [offset, size, strides] = layout;
    let offset = pickle.index(offset).and_then(|offset| offset.checked_add(storage.offset));
    let (Some(offset), Some(shape), Some(strides)) = (offset, pickle.indices(size), pickle.indices(strides))
    else {
        return Ok(None);
    };
    Ok(Some(TensorRef { storage: storage.key, view: View { element, offset, shape, strides } }))
}

/// Parses `('storage', class, key, location, numel[, view])` with view = `(key, offset, numel)` or `None`.
fn storage_of_id(pickle: &Pickle, id: Id) -> Option<StorageRef> {
    let &[kind, class, key, _location, _numel, ref view @ ..] = pickle.tuple(id)? else { return None };
    if pickle.str(kind) != Some("storage") {
        return None;
    }
    let (module, class) = pickle.global(class)?;
    if module != "torch" && !module.starts_with("torch.") {
        return None;
    }
    let offset = match view.first().map(|&view| pickle.node(view)) {
        Some(Node::Tuple(view)) => pickle.index(*view.get(1)?)?,
        _ => 0,
    };
    Some(StorageRef { key: pickle.str(key)?.to_string(), class: class.to_string(), offset })
}
