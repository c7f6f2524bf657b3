//! Patterns of parameter names with numbered parts, and the names made from them.
//!
//! A pattern is a name in which `{x}` stands for one or more characters other than dots, called x, and a final `*`
//! for the rest, of whatever length. In the name that is made, `{x}` is what x stood for, `{x+2}` and `{x-1}`
//! are other numbers, `{s:b+1}` is the number of a block counted through all stages, and `*` is the rest.

/// What the parts of a pattern stood for in a name.
#[derive(Debug, Default)]
pub(super) struct Parts<'n> {
    named: Vec<(&'static str, &'n str)>,
    rest: &'n str,
}

impl Parts<'_> {
    fn text(&self, part: &str) -> Option<&str> {
        self.named.iter().find(|(name, _)| *name == part).map(|(_, text)| *text)
    }

    fn number(&self, part: &str) -> Option<usize> {
        self.text(part)?.parse().ok()
    }
}

/// What the parts of `pattern` stand for in `name`; `None` if they do not match.
pub(super) fn matched<'n>(pattern: &'static str, name: &'n str) -> Option<Parts<'n>> {
    let mut parts = Parts::default();
    extend(pattern, name, &mut parts).then_some(parts)
}

fn extend<'n>(pattern: &'static str, name: &'n str, parts: &mut Parts<'n>) -> bool {
    let special = pattern.find(['{', '*']).unwrap_or(pattern.len());
    let (literal, pattern) = pattern.split_at(special);
    let Some(name) = name.strip_prefix(literal) else { return false };
    if let Some(pattern) = pattern.strip_prefix('{') {
        let Some((part, pattern)) = pattern.split_once('}') else { return false };
        let longest = name.find('.').unwrap_or(name.len());
        let ends = (1..=longest).rev().filter(|&end| name.is_char_boundary(end));
        for end in ends {
            parts.named.push((part, &name[..end]));
            if extend(pattern, &name[end..], parts) {
                return true;
            }
            parts.named.pop();
        }
        return false;
    }
    if pattern == "*" {
        parts.rest = name;
        return true;
    }
    pattern.is_empty() && name.is_empty()
}

/// The name that `template` makes of these parts, where the stages have so many blocks each; `None` if a part that
/// is counted with is no number.
pub(super) fn made(template: &str, parts: &Parts<'_>, depths: &[usize]) -> Option<String> {
    let mut name = String::new();
    let mut rest = template;
    while let Some(special) = rest.find(['{', '*']) {
        name += &rest[..special];
        rest = &rest[special..];
        if let Some(after) = rest.strip_prefix('*') {
            name += parts.rest;
            rest = after;
            continue;
        }
        let (part, after) = rest[1..].split_once('}')?;
        name += &value(part, parts, depths)?;
        rest = after;
    }
    Some(name + rest)
}

/// `x`, `x+2`, `x-1`, `s:b` or `s:b+1`.
fn value(part: &str, parts: &Parts<'_>, depths: &[usize]) -> Option<String> {
    let (part, offset) = match part.find(['+', '-']) {
        Some(sign) => (&part[..sign], part[sign..].parse::<isize>().ok()?),
        None if part.contains(':') => (part, 0),
        None => return parts.text(part).map(str::to_string),
    };
    let number = match part.split_once(':') {
        Some((stage, block)) => {
            let earlier = depths.get(..parts.number(stage)?)?;
            earlier.iter().sum::<usize>().checked_add(parts.number(block)?)?
        }
        None => parts.number(part)?,
    };
    Some(number.checked_add_signed(offset)?.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rename(from: &'static str, to: &str, name: &str) -> Option<String> {
        made(to, &matched(from, name)?, &[1, 2, 3])
    }

    #[test]
    fn names_are_taken_apart_and_put_together() {
        let case = |from, to, name| rename(from, to, name).unwrap_or_default();
        assert_eq!(case("fc.*", "head.fc.*", "fc.weight"), "head.fc.weight");
        assert_eq!(case("s{i}.b{j}.*", "stage{i}.{j-1}.*", "s1.b12.conv.weight"), "stage1.11.conv.weight");
        assert_eq!(
            case("blocks.{s}.{b}.*", "features.{s:b+1}.*", "blocks.2.1.bn.bias"),
            "features.5.bn.bias"
        );
        assert_eq!(case("{l}.norm.{n}.*", "{l}.norm{n}.*", "layer1.norm.2.weight"), "layer1.norm2.weight");
        assert_eq!(case("{a}_{b}.weight", "{b}.{a}", "conv_dw_pw.weight"), "pw.conv_dw");
    }

    #[test]
    fn what_does_not_match_has_no_new_name() {
        assert_eq!(rename("fc.*", "x.*", "fc1.weight"), None);
        assert_eq!(rename("fc.weight", "x", "fc.weight2"), None);
        assert_eq!(rename("{l}.fc", "x", "a.b.fc"), None);
        assert_eq!(rename("{l}.fc", "x", ".fc"), None);
        // Numbers that are none, too large, below zero, or of a stage that is not there.
        assert_eq!(rename("a{i}", "b{i+1}", "ax"), None);
        assert_eq!(rename("a{i}", "b{i+1}", &format!("a{}", usize::MAX)), None);
        assert_eq!(rename("a{i}", "b{i-1}", "a0"), None);
        assert_eq!(rename("a.{s}.{b}", "b{s:b}", "a.4.0"), None);
        assert_eq!(rename("a.{s}.{b}", "b{s:b}", &format!("a.1.{}", usize::MAX)), None);
    }

    #[test]
    fn names_in_any_script() {
        assert_eq!(rename("{x}é.*", "{x}.*", "ñandúé.w").as_deref(), Some("ñandú.w"));
        assert_eq!(rename("{x}.w", "{x}", "ñ.w").as_deref(), Some("ñ"));
    }
}
