//! SLURM's lists of nodes, as in `node[01-03,7],login`.

use std::process::Command;

/// The first host of a list: before each bracket's first comma or dash, and the first of the list.
///
/// `None` if the list is not of this form.
pub(super) fn first_host(list: &str) -> Option<String> {
    let mut host = String::new();
    let mut rest = list.trim();
    loop {
        let end = rest.find(['[', ',', ']']).unwrap_or(rest.len());
        host += &rest[..end];
        match rest[end..].chars().next() {
            None | Some(',') => break,
            Some('[') => {
                let (ranges, after) = rest[end + 1..].split_once(']')?;
                let first = ranges.split([',', '-']).next()?;
                if first.is_empty() || !first.bytes().all(|byte| byte.is_ascii_digit()) {
                    return None;
                }
                host += first;
                rest = after;
            }
            Some(_) => return None,
        }
    }
    let is_name = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
    (!host.is_empty() && host.chars().all(is_name)).then_some(host)
}

/// The first host by SLURM's own tool.
pub(super) fn ask_scontrol(list: &str) -> Option<String> {
    let output = Command::new("scontrol").args(["show", "hostnames", list]).output().ok()?;
    let hosts = String::from_utf8(output.stdout).ok()?;
    let first = hosts.lines().next()?.trim();
    (output.status.success() && !first.is_empty()).then(|| first.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_host_is_found_in_every_form_of_list() {
        let cases = [
            ("a[01-03,7],b", Some("a01")),
            ("node5", Some("node5")),
            ("node5,node6", Some("node5")),
            ("gpu-a[7,9-12]", Some("gpu-a7")),
            ("rack[1-2]node[003-004]", Some("rack1node003")),
            ("rack[1-2]-ib0.cluster,b", Some("rack1-ib0.cluster")),
            ("n[08-11]", Some("n08")),
            ("", None),
            ("n[", None),
            ("n]", None),
            ("n[]", None),
            ("n[x-y]", None),
            (",a", None),
        ];
        for (list, expected) in cases {
            assert_eq!(first_host(list).as_deref(), expected, "{list:?}");
        }
    }
}
