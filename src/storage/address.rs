//! Parses the text of a location: a path of this machine, or a key in a bucket.
//!
//! Text that is almost a URL (`s3:/bucket/key`), or that only a shell completes (`~/x`, `$HOME/x`), is an error that
//! suggests the likely meaning, since a folder of that name is hardly meant. A relative path of such a name is written
//! `./s3:x`; a `file://` URL is taken literally. Nothing is looked up on the disk or in a store.

use std::path::{Path, PathBuf};

use url::Url;

/// The supported schemes, in lower case.
const SUPPORTED: [&str; 7] = ["s3", "s3a", "gs", "az", "abfs", "abfss", "file"];
/// Schemes of other programs, each with the supported scheme for the same store.
const TRANSLATED: [(&str, &str); 5] =
    [("s3n", "s3"), ("gcs", "gs"), ("azure", "az"), ("wasb", "az"), ("wasbs", "az")];
/// Unsupported schemes without such a counterpart.
const FOREIGN: [&str; 10] = ["http", "https", "ftp", "sftp", "ssh", "hdfs", "viewfs", "hf", "dbfs", "oss"];

/// A location, as parsed from its text.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Address {
    /// A path of this machine, as written.
    Local(PathBuf),
    /// A key in a bucket or container of an object store; the scheme is in lower case.
    Remote { scheme: String, bucket: String, key: String },
}

impl Address {
    /// Parses a path or a URL.
    ///
    /// # Errors
    /// The reason, with the likely meaning.
    pub(super) fn parse(text: &str) -> Result<Self, String> {
        if text.is_empty() {
            return Err("empty; expected a path or a URL".into());
        }
        match text.split_once("://") {
            Some((scheme, rest)) => Self::of_url(text, &scheme.to_lowercase(), rest),
            None => Self::of_path(text),
        }
    }

    fn of_path(text: &str) -> Result<Self, String> {
        if let Some(meant) = almost_url(text) {
            return Err(format!("did you mean {meant}? A folder of this name is written `./{text}`"));
        }
        if text.starts_with('~') && !text[1..].starts_with(char::is_whitespace) && is_home(text) {
            return Err(format!(
                "only a shell expands `~`; write the path out, or `./{text}` for a folder of this name"
            ));
        }
        if let Some(variable) = shell_variable(text) {
            let url = std::path::absolute(text).ok().and_then(|path| Url::from_file_path(path).ok());
            let url = url.map_or_else(|| "a file:// URL".to_owned(), |url| format!("`{url}`"));
            return Err(format!(
                "only a shell expands `{variable}`; write the path out, or {url} for a folder of this name"
            ));
        }
        Ok(Self::Local(PathBuf::from(text)))
    }

    fn of_url(text: &str, scheme: &str, rest: &str) -> Result<Self, String> {
        if scheme == "file" {
            let url = Url::parse(text).map_err(|error| error.to_string())?;
            let meant = rest.trim_start_matches('/');
            let path = url.to_file_path();
            return path.map(Self::Local).map_err(|()| format!("did you mean `file:///{meant}`?"));
        }
        if !SUPPORTED.contains(&scheme) {
            return Err(match instead_of(scheme, rest) {
                Some(meant) => format!("did you mean {meant}?"),
                None => format!(
                    "unknown scheme `{scheme}`; expected a path, or a file://, s3://, gs:// or az:// URL"
                ),
            });
        }
        let (bucket, key) = rest.split_once('/').unwrap_or((rest, ""));
        if let Some((container, host)) = bucket.split_once('@')
            && let Some(meant) = azure(scheme, container, host, key)
        {
            return Err(format!("did you mean {meant}?"));
        }
        if bucket.is_empty() && !key.trim_matches('/').is_empty() {
            return Err(format!("did you mean `{scheme}://{}`?", key.trim_start_matches('/')));
        }
        if bucket.is_empty() || bucket.contains('@') {
            return Err("expected a bucket name without credentials".into());
        }
        if let Some(variable) = shell_variable(rest) {
            return Err(format!("only a shell expands `{variable}`; write the URL out"));
        }
        Ok(Self::Remote {
            scheme: scheme.into(),
            bucket: bucket.into(),
            key: key.trim_end_matches('/').into(),
        })
    }
}

/// Returns the likely meaning of a text that begins with a scheme but has no `://`.
fn almost_url(text: &str) -> Option<String> {
    let end = text.find(|c: char| !c.is_ascii_alphanumeric())?;
    let (scheme, rest) = (text[..end].to_lowercase(), &text[end..]);
    let known = SUPPORTED.contains(&scheme.as_str())
        || FOREIGN.contains(&scheme.as_str())
        || TRANSLATED.iter().any(|(other, _)| *other == scheme);
    // `s3:x`, `s3:/x`, `s3:\x` and `s3//x`; `s3/x` is a path.
    if !known || !(rest.starts_with(':') || rest.starts_with("//")) {
        return None;
    }
    let rest = rest.trim_start_matches([':', '/', '\\']);
    if scheme == "file" {
        return Some(format!("`file:///{rest}` or `/{rest}`"));
    }
    match SUPPORTED.contains(&scheme.as_str()) {
        true => Some(format!("`{scheme}://{rest}`")),
        false => Some(instead_of(&scheme, rest).unwrap_or_else(|| format!("a URL with `{scheme}://`"))),
    }
}

/// Returns the likely meaning of a URL whose scheme is not supported.
fn instead_of(scheme: &str, rest: &str) -> Option<String> {
    let rest = rest.trim_start_matches('/');
    let (host, path) = rest.split_once('/').unwrap_or((rest, ""));
    if ["http", "https"].contains(&scheme) {
        // The rest may be a signature, which is a secret.
        let path = path.split(['?', '#']).next().unwrap_or("").trim_end_matches('/');
        return Some(of_host(host, path).unwrap_or_else(|| {
            "`s3://BUCKET/KEY` with `--storage-option aws_endpoint=` and the server's address".to_owned()
        }));
    }
    let (_, ours) = TRANSLATED.iter().find(|(other, _)| *other == scheme)?;
    match host.split_once('@') {
        Some((container, host)) => azure(scheme, container, host, path),
        None => Some(format!("`{ours}://{rest}`")),
    }
}

/// Translates the address of a cloud's server to a supported URL.
fn of_host(host: &str, path: &str) -> Option<String> {
    let host = host.to_lowercase();
    let url = |scheme: &str, bucket: &str, key: &str| {
        let key = if key.is_empty() { String::new() } else { format!("/{key}") };
        (!bucket.is_empty()).then(|| format!("`{scheme}://{bucket}{key}`"))
    };
    let (first, rest) = path.split_once('/').unwrap_or((path, ""));
    if let Some(name) = host.strip_suffix(".amazonaws.com").or(host.strip_suffix(".amazonaws.com.cn")) {
        if name == "s3" || name.starts_with("s3.") || name.starts_with("s3-") {
            return url("s3", first, rest);
        }
        let bucket = name
            .rfind(".s3.")
            .or(name.rfind(".s3-"))
            .or_else(|| name.ends_with(".s3").then(|| name.len() - ".s3".len()))?;
        return url("s3", &name[..bucket], path);
    }
    if host == "storage.googleapis.com" || host == "storage.cloud.google.com" {
        return url("gs", first, rest);
    }
    if let Some(bucket) = host.strip_suffix(".storage.googleapis.com") {
        return url("gs", bucket, path);
    }
    azure("https", first, &host, rest)
}

/// Translates a container of an Azure account to a supported URL.
fn azure(scheme: &str, container: &str, host: &str, key: &str) -> Option<String> {
    let account =
        host.strip_suffix(".blob.core.windows.net").or(host.strip_suffix(".dfs.core.windows.net"))?;
    let known = ["https", "az", "azure", "abfs", "abfss", "wasb", "wasbs"].contains(&scheme);
    (known && !container.is_empty() && !account.contains('.')).then(|| {
        let key = if key.is_empty() { String::new() } else { format!("/{key}") };
        format!("`az://{container}{key}` with `AZURE_STORAGE_ACCOUNT_NAME={account}` in the environment")
    })
}

/// Returns whether a shell expands the first part of the text to a home folder.
fn is_home(text: &str) -> bool {
    let first = text.split('/').next().unwrap_or("");
    first == "~"
        || (text.contains('/') && first[1..].chars().all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c)))
}

/// Finds the first `$NAME` or `${NAME}`. A name between two `$` does not count, as in `_$folder$` of other programs.
fn shell_variable(text: &str) -> Option<&str> {
    text.match_indices('$').find_map(|(at, _)| {
        let rest = &text[at + 1..];
        if let Some(inside) = rest.strip_prefix('{') {
            return Some(&text[at..=at + 2 + inside.find('}')?]);
        }
        let is_name = |c: char| c.is_ascii_alphanumeric() || c == '_';
        let end = rest.find(|c| !is_name(c)).unwrap_or(rest.len());
        let named = rest.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_');
        (named && !rest[end..].starts_with('$')).then(|| &text[at..=at + end])
    })
}

/// Returns the text without any credentials or signature of a URL.
pub(super) fn without_credentials(text: &str) -> String {
    let Some(scheme) = text.find("://") else { return text.to_owned() };
    let (head, rest) = text.split_at(scheme + 3);
    let rest = match rest.split_once('?') {
        Some((path, _)) if ["http://", "https://"].contains(&head.to_lowercase().as_str()) => {
            format!("{path}?…")
        }
        _ => rest.to_owned(),
    };
    // Azure's container names also precede an `@`; they are not secret.
    match rest.rfind('@') {
        Some(at) if rest[..at].contains(':') || !rest[at..].contains(".core.windows.net") => {
            format!("{head}…{}", &rest[at..])
        }
        _ => format!("{head}{rest}"),
    }
}

/// Resolves `.` and `..` by name alone, as a shell's `cd` does.
pub(super) fn without_dots(path: &Path) -> PathBuf {
    use std::path::Component;
    let mut plain = PathBuf::new();
    for component in path.components() {
        match component {
            Component::CurDir => {}
            Component::ParentDir => {
                plain.pop();
            }
            other => plain.push(other),
        }
    }
    plain
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rejected(text: &str) -> String {
        Address::parse(text).expect_err(text)
    }

    #[test]
    fn a_url_with_slashes_missing_is_not_a_folder_and_the_error_suggests_the_url() {
        for (text, meant) in [
            ("s3:/bucket/ds", "`s3://bucket/ds`"),
            ("s3:bucket/ds", "`s3://bucket/ds`"),
            ("S3:/bucket/ds", "`s3://bucket/ds`"),
            ("s3//bucket/ds", "`s3://bucket/ds`"),
            ("s3a:/bucket/ds", "`s3a://bucket/ds`"),
            ("gs:/bucket/ds", "`gs://bucket/ds`"),
            ("az:container/ds", "`az://container/ds`"),
            ("gcs:/bucket/ds", "`gs://bucket/ds`"),
            ("file:/tmp/x", "`file:///tmp/x` or `/tmp/x`"),
            ("file:x", "`file:///x` or `/x`"),
            ("https:/bucket.s3.amazonaws.com/ds", "`s3://bucket/ds`"),
            ("hdfs:/x", "hdfs://"),
        ] {
            let error = rejected(text);
            assert!(
                error.contains(&format!("did you mean {meant}")) || error.contains(meant),
                "{text}: {error}"
            );
            assert!(error.contains(&format!("`./{text}`")), "{text}: {error}");
            let written = format!("./{text}");
            assert_eq!(Address::parse(&written), Ok(Address::Local(written.into())));
        }
        for plain in ["s3/x", "s3", "data/s3:x", "a:b/c", "/s3:/x", "gs", "2024:01", "files:x", "~1", "C++"] {
            assert_eq!(Address::parse(plain), Ok(Address::Local(plain.into())));
        }
    }

    #[test]
    fn a_url_of_another_program_is_translated() {
        for (text, meant) in [
            ("https://bucket.s3.amazonaws.com/ds", "`s3://bucket/ds`"),
            ("https://my.bucket.s3.eu-central-1.amazonaws.com/a/b", "`s3://my.bucket/a/b`"),
            ("https://s3.eu-central-1.amazonaws.com/bucket/a", "`s3://bucket/a`"),
            ("https://s3-us-west-2.amazonaws.com/bucket", "`s3://bucket`"),
            ("https://bucket.s3.amazonaws.com/ds?X-Amz-Signature=secret", "`s3://bucket/ds`"),
            ("https://storage.googleapis.com/bucket/a", "`gs://bucket/a`"),
            ("https://acc.blob.core.windows.net/box/a", "`az://box/a` with `AZURE_STORAGE_ACCOUNT_NAME=acc`"),
            ("abfss://box@acc.dfs.core.windows.net/a", "`az://box/a` with `AZURE_STORAGE_ACCOUNT_NAME=acc`"),
            ("wasbs://box@acc.blob.core.windows.net/a", "`az://box/a` with `AZURE_STORAGE_ACCOUNT_NAME=acc`"),
            ("gcs://bucket/a", "`gs://bucket/a`"),
            ("s3n://bucket/a", "`s3://bucket/a`"),
            ("s3:///bucket/a", "`s3://bucket/a`"),
            ("file://tmp/x", "`file:///tmp/x`"),
            ("http://localhost:9000/bucket", "aws_endpoint"),
        ] {
            let error = rejected(text);
            assert!(error.contains("did you mean ") && error.contains(meant), "{text}: {error}");
            assert!(!error.contains("secret"), "{error}");
        }
        assert!(rejected("ftp://host/x").contains("unknown scheme `ftp`"));
        assert!(
            !without_credentials("https://b.s3.amazonaws.com/x?X-Amz-Signature=secret").contains("secret")
        );
    }

    #[test]
    fn text_that_only_a_shell_expands_is_not_a_folder() {
        for text in
            ["~", "~/c", "~user/c", "$HOME/c", "${HOME}/c", "/scratch/$USER/c", "runs/r-$JOB_ID", "./$HOME/c"]
        {
            assert!(rejected(text).contains("only a shell expands"), "{text}");
        }
        assert!(rejected("/scratch/$USER/c").contains("`file:///scratch/$USER/c`"));
        assert!(rejected("s3://$BUCKET/x").contains("`$BUCKET`"));
        let literal = Address::parse("file:///scratch/$USER/c").expect("a path");
        assert_eq!(literal, Address::Local("/scratch/$USER/c".into()));
        for plain in ["./~/c", "~home", "a~b", "cost$", "us$100", "x/_$folder$", "/data/~/c", "$"] {
            assert_eq!(Address::parse(plain), Ok(Address::Local(plain.into())), "{plain}");
        }
    }

    #[test]
    fn the_case_of_a_scheme_does_not_matter() {
        let bucket = |key: &str| Address::Remote { scheme: "s3".into(), bucket: "b".into(), key: key.into() };
        assert_eq!(Address::parse("S3://b/x/"), Ok(bucket("x")));
        assert_eq!(Address::parse("s3://b"), Ok(bucket("")));
    }
}
