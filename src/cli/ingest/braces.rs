//! Brace expansion of source names, `{000..146}` and `{a,b}`, which a shell cannot do for object stores.
//!
//! As in bash, groups nest, `{a}` and `${a}` stand for themselves, and numbers are padded if an end of their
//! range starts with a zero. A backslash escapes `{`, `}` and `,`. Unlike in bash, ranges of letters and of
//! negative numbers are errors, and so are unbalanced braces.

use anyhow::bail;

/// Number of names above which the pattern is probably a mistake.
const MOST_NAMES: u64 = 1_000_000;

/// Returns all names that the pattern expands to, in order.
pub(in crate::cli) fn expand(pattern: &str) -> anyhow::Result<Vec<String>> {
    let mut parser = Parser { pattern, at: 0 };
    let names = parser.names(false)?;
    match parser.at == pattern.len() {
        true => Ok(names),
        false => bail!("`{pattern}`: a `}}` without its `{{`; {HINT}"),
    }
}

/// Advice in errors.
const HINT: &str = "write `\\{` and `\\}` for braces in a name";

struct Parser<'a> {
    pattern: &'a str,
    /// Bytes read so far.
    at: usize,
}

impl Parser<'_> {
    fn rest(&self) -> &str {
        &self.pattern[self.at..]
    }

    /// Parses up to the end, or within a group up to its next `,` or `}`.
    fn names(&mut self, in_group: bool) -> anyhow::Result<Vec<String>> {
        let mut names = vec![String::new()];
        while let Some(first) = self.rest().chars().next() {
            let literal = match first {
                '}' => break,
                ',' if in_group => break,
                '{' => {
                    let endings = self.group()?;
                    self.limit(names.len() as u64 * endings.len() as u64)?;
                    let with = |name: String| endings.iter().map(move |ending| format!("{name}{ending}"));
                    names = names.into_iter().flat_map(with).collect();
                    continue;
                }
                '\\' if self.rest()[1..].starts_with(['{', '}', ',']) => {
                    self.at += 1;
                    1
                }
                // Not a group, but a shell variable.
                '$' if self.rest()[1..].starts_with('{') => self.rest().find('}').map_or(2, |end| end + 1),
                other => other.len_utf8(),
            };
            let end = self.at + literal;
            names.iter_mut().for_each(|name| name.push_str(&self.pattern[self.at..end]));
            self.at = end;
        }
        Ok(names)
    }

    /// Parses a group from its `{` to its `}`.
    fn group(&mut self) -> anyhow::Result<Vec<String>> {
        let (open, mut members) = (self.at + 1, Vec::new());
        let mut commas = 0;
        loop {
            self.at += 1;
            members.extend(self.names(true)?);
            self.limit(members.len() as u64)?;
            match self.rest().chars().next() {
                Some(',') => commas += 1,
                Some(_) => break,
                None => bail!("`{}`: a `{{` without its `}}`; {HINT}", self.pattern),
            }
        }
        let inside = &self.pattern[open..self.at];
        self.at += 1;
        if commas > 0 {
            return Ok(members);
        }
        match inside.contains("..") && !inside.contains(['{', '\\']) {
            true => self.range(inside),
            false => Ok(members.into_iter().map(|member| format!("{{{member}}}")).collect()),
        }
    }

    fn range(&self, inside: &str) -> anyhow::Result<Vec<String>> {
        let parts: Vec<_> = inside.split("..").collect();
        let numbers: Option<Vec<u64>> = parts.iter().map(|part| number(part)).collect();
        let (first, last, step) = match numbers.as_deref() {
            Some(&[first, last]) => (first, last, 1),
            Some(&[first, last, step]) if step > 0 => (first, last, step),
            _ => bail!(
                "`{}`: expected `{{FIRST..LAST}}` or `{{FIRST..LAST..STEP}}` with numbers from 0, and a step above 0, \
                 not `{{{inside}}}`; {HINT}",
                self.pattern
            ),
        };
        let steps = first.abs_diff(last) / step;
        self.limit(steps.saturating_add(1))?;
        let is_padded = |text: &&&str| text.len() > 1 && text.starts_with('0');
        let width = match parts[..2].iter().find(is_padded) {
            Some(_) => parts[0].len().max(parts[1].len()),
            None => 0,
        };
        let nth = |nth: u64| if first <= last { first + nth * step } else { first - nth * step };
        Ok((0..=steps).map(|at| format!("{:0width$}", nth(at))).collect())
    }

    fn limit(&self, names: u64) -> anyhow::Result<()> {
        if names > MOST_NAMES {
            bail!("`{}`: stands for more than {MOST_NAMES} names", self.pattern);
        }
        Ok(())
    }
}

/// Parses a number that has only digits, without `+`.
fn number(text: &str) -> Option<u64> {
    text.bytes().all(|byte| byte.is_ascii_digit()).then(|| text.parse().ok())?
}

#[cfg(test)]
mod tests {
    use super::*;

    fn expanded(pattern: &str) -> Vec<String> {
        expand(pattern).expect(pattern)
    }

    #[test]
    fn ranges_and_lists_give_what_bash_gives() {
        for (pattern, names) in [
            ("a", "a"),
            ("s-{08..10}.tar", "s-08.tar s-09.tar s-10.tar"),
            ("{b,a}/{0..1}", "b/0 b/1 a/0 a/1"),
            ("{a,{b,c}}", "a b c"),
            ("x{a,b{0..1},}y", "xay xb0y xb1y xy"),
            ("{{a,b}}", "{a} {b}"),
            ("{a}", "{a}"),
            ("{}", "{}"),
            ("{00..2}", "00 01 02"),
            ("{9..010}", "009 010"),
            ("{3..1}", "3 2 1"),
            ("{0..7..3}", "0 3 6"),
            ("{a..b,c}", "a..b c"),
            ("${HOME}/{a,b}", "${HOME}/a ${HOME}/b"),
            ("back\\slash", "back\\slash"),
            ("🐶{ü,ö}", "🐶ü 🐶ö"),
        ] {
            assert_eq!(expanded(pattern), names.split(' ').collect::<Vec<_>>(), "{pattern}");
        }
    }

    #[test]
    fn a_backslash_names_a_brace() {
        assert_eq!(expanded("\\{a,b\\}"), ["{a,b}"]);
        assert_eq!(expanded("{a\\,b,c}"), ["a,b", "c"]);
    }

    #[test]
    fn a_pattern_that_makes_no_sense_is_named() {
        for pattern in [
            "x{0..",
            "x{a",
            "x}",
            "a,b}",
            "{a,{b,c}",
            "x{a..c}",
            "x{-1..3}",
            "x{+1..3}",
            "x{1..2..0}",
            "x{1..}",
            "x{0..99999999}",
            "{0..9999}{0..9999}",
            "x{0..1..2..3}",
        ] {
            let error = expand(pattern).expect_err(pattern);
            assert!(error.to_string().starts_with(&format!("`{pattern}`: ")), "{error}");
        }
    }
}
