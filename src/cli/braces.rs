//! `{000..146}` and `{a,b}` in the names of sources, as a shell would expand them; quoted, since a shell knows no
//! object store.

use anyhow::bail;

/// More names than this are a slip of the pen.
const MOST_NAMES: u64 = 1_000_000;

/// Every name that the pattern stands for, in its order.
pub(super) fn expand(pattern: &str) -> anyhow::Result<Vec<String>> {
    let Some(open) = pattern.find('{') else { return Ok(vec![pattern.to_owned()]) };
    let Some(close) = pattern[open..].find('}').map(|at| open + at) else {
        bail!("{pattern}: the brace is not closed")
    };
    let (before, inside, after) = (&pattern[..open], &pattern[open + 1..close], &pattern[close + 1..]);
    let middles = match inside.split_once("..") {
        Some((first, last)) => range(pattern, first, last)?,
        None => inside.split(',').map(str::to_owned).collect(),
    };
    let ends = expand(after)?;
    if middles.len() as u64 * ends.len() as u64 > MOST_NAMES {
        bail!("{pattern}: stands for more than {MOST_NAMES} names");
    }
    Ok(middles
        .iter()
        .flat_map(|middle| ends.iter().map(move |end| format!("{before}{middle}{end}")))
        .collect())
}

fn range(pattern: &str, first: &str, last: &str) -> anyhow::Result<Vec<String>> {
    let (Ok(from), Ok(to)) = (first.parse::<u64>(), last.parse::<u64>()) else {
        bail!("{pattern}: {first}..{last} is no range of numbers")
    };
    if from > to || to - from >= MOST_NAMES {
        bail!("{pattern}: {first}..{last} is no range that can be listed");
    }
    let width = first.len();
    Ok((from..=to).map(|number| format!("{number:0width$}")).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_keep_their_zeros_and_lists_their_order() {
        assert_eq!(expand("a").expect("plain"), ["a"]);
        assert_eq!(expand("s-{08..10}.tar").expect("a range"), ["s-08.tar", "s-09.tar", "s-10.tar"]);
        assert_eq!(expand("{b,a}/{0..1}").expect("both"), ["b/0", "b/1", "a/0", "a/1"]);
    }

    #[test]
    fn a_pattern_that_makes_no_sense_is_named() {
        for pattern in ["x{0..", "x{a..c}", "x{3..1}", "x{0..99999999}"] {
            let error = expand(pattern).expect_err("nonsense");
            assert!(error.to_string().starts_with(pattern), "{error}");
        }
    }
}
