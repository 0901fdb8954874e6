//! Errors of a store without secrets.
//!
//! Stores repeat a refused request in their answer, with its session token, and the object_store crate puts answers
//! into its errors. An error text has the cause, without such answers and without the value of any secret setting.

use std::error::Error as StdError;

use crate::failure::chain;

/// Prefixes of the environment variables with settings of stores.
const FAMILIES: [&str; 4] = ["AWS_", "AZURE_", "GOOGLE_", "GCP_"];
/// Minimum length of a replaced value; shorter ones could be parts of plain words.
const SHORTEST: usize = 8;

/// Values that no error may show.
pub(super) struct Secrets(Vec<String>);

impl Secrets {
    /// Collects the secrets of the environment, and `more`.
    pub(super) fn new(more: impl IntoIterator<Item = String>) -> Self {
        let of_stores = |name: &str| FAMILIES.iter().any(|family| name.starts_with(family));
        let environment = variables().filter(|(name, _)| of_stores(name) && is_secret(name));
        let values = environment.map(|(_, value)| value).chain(more);
        Self(values.filter(|value| value.len() >= SHORTEST).collect())
    }

    pub(super) fn redact(&self, text: &str) -> String {
        self.0.iter().fold(text.to_owned(), |text, secret| text.replace(secret, "…"))
    }
}

/// Returns the environment variables that are valid text; no setting of a store is anything else.
pub(super) fn variables() -> impl Iterator<Item = (String, String)> {
    std::env::vars_os()
        .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
}

/// Returns whether the setting of this name holds a secret.
pub(super) fn is_secret(name: &str) -> bool {
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
    // Names of files, addresses and key ids.
    let public =
        ["_file", "_uri", "_url", "_path", "access_key_id"].iter().any(|ending| name.ends_with(ending));
    !public && marks.iter().any(|mark| name.contains(mark))
}

/// Describes an error and its causes on one line, with only code and message of the store's answer.
pub(super) fn one_line(error: &(dyn StdError + 'static)) -> String {
    without_answer(&chain(error))
}

/// Reduces a store's XML to its code and message.
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_reduced_to_its_code_and_message() {
        let answer = "refused: 403 Forbidden: <Error><Code>SignatureDoesNotMatch</Code><Message>No.</Message>\
                      <CanonicalRequest>x-amz-security-token:hunter22</CanonicalRequest></Error> at last";
        assert_eq!(without_answer(answer), "refused: 403 Forbidden: SignatureDoesNotMatch, No. at last");
        assert_eq!(without_answer("3 > 2 < 4"), "3 > 2 < 4");
    }

    #[test]
    fn a_cause_appears_once_and_a_secret_never() {
        let cause = std::io::Error::other("no route for hunter2hunter2");
        let outer = object_store::Error::Generic { store: "S3", source: Box::new(cause) };
        let secrets = Secrets::new(["hunter2hunter2".to_owned()]);
        assert_eq!(secrets.redact(&one_line(&outer)), "Generic S3 error: no route for …");
    }

    #[test]
    fn names_of_files_are_not_secrets() {
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
