//! What lies in the bucket, and what the store does with it.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::Faults;
use super::http::{Answer, Request};

/// Keys in one page of a list: few, so that pages are met.
const PAGE: usize = 7;

#[derive(Clone)]
pub(super) struct Object {
    pub(super) bytes: Arc<Vec<u8>>,
    pub(super) tag: String,
    pub(super) attributes: Vec<(String, String)>,
}

/// An upload under way: its attributes, and its parts by their numbers.
type Uploading = (Vec<(String, String)>, BTreeMap<usize, Vec<u8>>);

#[derive(Default)]
pub(super) struct State {
    pub(super) faults: Faults,
    pub(super) objects: BTreeMap<String, Object>,
    pub(super) uploads: BTreeMap<String, Uploading>,
    pub(super) log: Vec<String>,
    pub(super) drawn: u64,
    pub(super) refuse_after: Option<usize>,
    pub(super) deny_after: Option<usize>,
}

impl State {
    pub(super) fn answer(&mut self, request: &Request) -> Answer {
        if self.faults.denies {
            let head: Vec<_> = request.head.iter().map(|(name, value)| format!("{name}:{value}")).collect();
            let text = head.join("\n");
            return Answer::new(
                403,
                format!(
                    "<Error><Code>SignatureDoesNotMatch</Code><Message>The signature is wrong.</Message>\
                     <CanonicalRequest>{text}</CanonicalRequest></Error>"
                ),
            );
        }
        if self.faults.absent {
            return Answer::error(404, "NoSuchBucket");
        }
        if self.faults.token.is_some_and(|token| request.header("x-amz-security-token") != Some(token)) {
            return Answer::error(400, "ExpiredToken");
        }
        let has = |name: &str| request.query.contains_key(name);
        match request.method.as_str() {
            "GET" if has("list-type") => self.list(&request.query),
            "GET" | "HEAD" => self.get(request),
            "PUT" if has("partNumber") => self.put_part(request),
            "PUT" => self.put(request),
            "POST" if has("uploads") => self.start_upload(request),
            "POST" if has("delete") => self.delete(request),
            "POST" => self.finish_upload(request),
            "DELETE" => {
                self.uploads.remove(request.query.get("uploadId").map_or("", String::as_str));
                Answer::new(204, "")
            }
            _ => Answer::error(501, "NotImplemented"),
        }
    }

    fn get(&mut self, request: &Request) -> Answer {
        let Some(object) = self.objects.get(&request.key).cloned() else {
            return Answer::error(404, "NoSuchKey");
        };
        let length = object.bytes.len();
        let (from, to) = request.range(length).unwrap_or((0, length));
        if from > to || (from == length && length > 0) {
            return Answer::error(416, "InvalidRange");
        }
        let ranged = request.header("range").is_some();
        let mut answer = Answer::new(if ranged { 206 } else { 200 }, &object.bytes[from..to]);
        if let Some((ending, left)) = &mut self.faults.damaged
            && request.key.ends_with(*ending)
            && *left > 0
            && request.method == "GET"
        {
            *left -= 1;
            let middle = answer.body.len() / 2;
            answer.body[middle] ^= 0x40;
        }
        answer.head = object.attributes.clone();
        answer.head.push(("ETag".into(), object.tag.clone()));
        answer.head.push(("Last-Modified".into(), "Mon, 01 Jan 2024 00:00:00 GMT".into()));
        if ranged {
            answer.head.push(("Content-Range".into(), format!("bytes {from}-{}/{length}", to.max(1) - 1)));
        }
        answer
    }

    pub(super) fn store(&mut self, key: &str, bytes: Vec<u8>, attributes: Vec<(String, String)>) -> Answer {
        let tag = format!("\"{}\"", &blake3::hash(&bytes).to_hex()[..32]);
        let mut answer = Answer::new(200, "");
        answer.head.push(("ETag".into(), tag.clone()));
        self.objects.insert(key.to_owned(), Object { bytes: Arc::new(bytes), tag, attributes });
        answer
    }

    fn put(&mut self, request: &Request) -> Answer {
        let create = request.header("if-none-match") == Some("*") && !self.faults.overwrites;
        if create && self.objects.contains_key(&request.key) {
            return Answer::error(412, "PreconditionFailed");
        }
        self.store(&request.key, request.body.clone(), request.attributes())
    }

    fn start_upload(&mut self, request: &Request) -> Answer {
        let id = format!("upload-{}", self.drawn);
        self.uploads.insert(id.clone(), (request.attributes(), BTreeMap::new()));
        let text = format!(
            "<InitiateMultipartUploadResult><UploadId>{id}</UploadId></InitiateMultipartUploadResult>"
        );
        Answer::new(200, text)
    }

    fn put_part(&mut self, request: &Request) -> Answer {
        let number = request.query["partNumber"].parse().expect("a number");
        let Some((_, parts)) = self.uploads.get_mut(&request.query["uploadId"]) else {
            return Answer::error(404, "NoSuchUpload");
        };
        parts.insert(number, request.body.clone());
        let mut answer = Answer::new(200, "");
        answer.head.push(("ETag".into(), format!("\"part-{number}\"")));
        answer
    }

    fn finish_upload(&mut self, request: &Request) -> Answer {
        let Some((attributes, parts)) = self.uploads.remove(&request.query["uploadId"]) else {
            return Answer::error(404, "NoSuchUpload");
        };
        let bytes = parts.into_values().flatten().collect();
        self.store(&request.key, bytes, attributes);
        let tag = &self.objects[&request.key].tag;
        let text =
            format!("<CompleteMultipartUploadResult><ETag>{tag}</ETag></CompleteMultipartUploadResult>");
        Answer::new(200, text)
    }

    fn delete(&mut self, request: &Request) -> Answer {
        let text = String::from_utf8_lossy(&request.body).into_owned();
        let keys = text.split("<Key>").skip(1).filter_map(|rest| rest.split("</Key>").next());
        let mut done = String::new();
        for key in keys {
            self.objects.remove(key);
            done += &format!("<Deleted><Key>{key}</Key></Deleted>");
        }
        Answer::new(200, format!("<DeleteResult>{done}</DeleteResult>"))
    }

    fn list(&self, query: &BTreeMap<String, String>) -> Answer {
        let asked = |name: &str| query.get(name).map_or("", String::as_str);
        let (prefix, delimiter) = (asked("prefix"), asked("delimiter"));
        let after = asked("continuation-token").max(asked("start-after"));
        let (mut files, mut folders, mut last, mut more) = (String::new(), Vec::new(), "", false);
        let mut given = 0;
        for (key, object) in self.objects.range(after.to_owned()..) {
            let Some(rest) = key.strip_prefix(prefix).filter(|_| key != after) else { continue };
            if given == PAGE {
                more = true;
                break;
            }
            (last, given) = (key, given + 1);
            match rest.split_once(delimiter).filter(|_| !delimiter.is_empty()) {
                Some((folder, _)) => folders.push(format!("{prefix}{folder}{delimiter}")),
                None => {
                    let (bytes, tag) = (object.bytes.len(), &object.tag);
                    files += &format!(
                        "<Contents><Key>{key}</Key><Size>{bytes}</Size><ETag>{tag}</ETag>\
                         <LastModified>2024-01-01T00:00:00.000Z</LastModified></Contents>"
                    );
                }
            }
        }
        folders.dedup();
        let folders: String = folders
            .iter()
            .map(|folder| format!("<CommonPrefixes><Prefix>{folder}</Prefix></CommonPrefixes>"))
            .collect();
        let next = match more {
            true => format!("<NextContinuationToken>{last}</NextContinuationToken>"),
            false => String::new(),
        };
        Answer::new(
            200,
            format!(
                "<ListBucketResult><IsTruncated>{more}</IsTruncated>{files}{folders}{next}</ListBucketResult>"
            ),
        )
    }
}
