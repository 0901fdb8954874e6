//! What a store's error may say.
//!
//! Stores repeat a refused request in their answer, with its session token, and the object_store crate puts
//! answers into its errors. What is told on is the cause without such answers, and without any value of a
//! setting that is secret.

use std::error::Error;
use std::fmt;

/// Environment variables of these families hold settings of stores.
const FAMILIES: [&str; 4] = ["AWS_", "AZURE_", "GOOGLE_", "GCP_"];
/// A shorter value is no secret worth the name, and would blot out plain words.
const SHORTEST: usize = 8;

/// Values that are never told.
#[derive(Default)]
pub(in crate::storage) struct Secrets(Vec<String>);

impl fmt::Debug for Secrets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Secrets({})", self.0.len())
    }
}

impl Secrets {
    /// Those of the environment, and these.
    pub(in crate::storage) fn new(more: impl IntoIterator<Item = String>) -> Self {
        let of_stores = |name: &str| FAMILIES.iter().any(|family| name.starts_with(family));
        let environment = std::env::vars().filter(|(name, _)| of_stores(name) && is_secret(name));
        let values = environment.map(|(_, value)| value).chain(more);
        Self(values.filter(|value| value.len() >= SHORTEST).collect())
    }

    /// An error and its causes on one line.
    pub(in crate::storage) fn told(&self, error: &(dyn Error + 'static)) -> String {
        let mut told = String::new();
        let causes = std::iter::successors(Some(error), |&error| error.source());
        for cause in causes.map(ToString::to_string) {
            if told.contains(&cause) {
                continue;
            }
            if !told.is_empty() {
                told += ": ";
            }
            told += &cause;
        }
        self.told_text(&without_answer(&told))
    }

    /// A text without the secrets.
    pub(in crate::storage) fn told_text(&self, text: &str) -> String {
        self.0.iter().fold(text.to_owned(), |text, secret| text.replace(secret, "…"))
    }
}

/// Whether the value of such a setting must not be seen by others.
pub(in crate::storage) fn is_secret(name: &str) -> bool {
    let name = name.to_lowercase();
    let marks = [
        "secret",
        "token",
        "password",
        "account_key",
        "access_key",
        "master_key",
        "customer_key",
        "encryption_key",
        "sas",
    ];
    // Names of files, addresses and keys, by which a secret is found, are none.
    let public =
        ["_file", "_uri", "_url", "_path", "access_key_id"].iter().any(|ending| name.ends_with(ending));
    !public && marks.iter().any(|mark| name.contains(mark))
}

/// Leaves of a store's XML its code and its message.
fn without_answer(text: &str) -> String {
    let (Some(start), Some(end)) = (text.find('<'), text.rfind('>')) else { return text.to_owned() };
    if end < start {
        return text.to_owned();
    }
    let answer = &text[start..=end];
    let said: Vec<_> = ["Code", "Message"].iter().filter_map(|tag| element(answer, tag)).collect();
    format!("{}{}{}", &text[..start], said.join(", "), &text[end + 1..])
}

fn element<'a>(xml: &'a str, tag: &str) -> Option<&'a str> {
    let (_, rest) = xml.split_once(&format!("<{tag}>"))?;
    rest.split_once(&format!("</{tag}>")).map(|(value, _)| value)
}

/// What is told of an error of a store.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(in crate::storage) struct Redacted(pub(in crate::storage) String);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_told_by_its_code_and_message_alone() {
        let answer = "refused: 403 Forbidden: <Error><Code>SignatureDoesNotMatch</Code><Message>No.</Message>\
                      <CanonicalRequest>x-amz-security-token:hunter22</CanonicalRequest></Error> at last";
        assert_eq!(without_answer(answer), "refused: 403 Forbidden: SignatureDoesNotMatch, No. at last");
        assert_eq!(without_answer("3 > 2 < 4"), "3 > 2 < 4");
    }

    #[test]
    fn a_cause_is_told_once_and_a_secret_never() {
        let cause = std::io::Error::other("no route for hunter2hunter2");
        let outer = object_store::Error::Generic { store: "S3", source: Box::new(cause) };
        let secrets = Secrets::new(["hunter2hunter2".to_owned()]);
        assert_eq!(secrets.told(&outer), "Generic S3 error: no route for …");
        assert!(!format!("{secrets:?}").contains("hunter2"));
    }

    #[test]
    fn names_of_files_are_no_secrets() {
        let secret = [
            "AWS_SECRET_ACCESS_KEY",
            "aws_session_token",
            "azure_storage_access_key",
            "access_key",
            "azure_storage_account_key",
            "aws_sse_customer_key_base64",
            "encryption_key",
            "google_service_account_key",
            "azure_storage_sas_key",
        ];
        assert!(secret.into_iter().all(is_secret));
        assert!(!is_secret("AWS_ACCESS_KEY_ID") && !is_secret("access_key_id"));
        assert!(!is_secret("AWS_WEB_IDENTITY_TOKEN_FILE") && !is_secret("AWS_ENDPOINT"));
    }
}
