//! Requests to the hub, and files as they come.
//!
//! `hf-hub` says where things are and makes the requests. Their way is ours, because its own follows every redirect, asks the proxies of the
//! environment, waits without end and writes as much as is sent.

use super::{Hub, HubProgress};
use crate::hub_error::HubError;
use hf_hub::api::RepoInfo;
use hf_hub::api::sync::{Api, ApiBuilder, ApiRepo};
use hf_hub::{Cache, Repo, RepoType};
use sha2::{Digest, Sha256};
use std::fs::File;
use std::io::{Read, Seek, Write};
use std::ops::ControlFlow;
use std::path::Path;
use ureq::http::{Response, Uri, header};
use ureq::{Body, BodyReader};

/// Redirects of one request at most.
const MOST_HOPS: usize = 5;
/// Bytes of a list of files at most.
const LONGEST_LIST: u64 = 64 << 20;
/// Bytes that are read at a time.
const PIECE: usize = 64 << 10;

/// What is told how far it is, and says whether to go on.
pub(super) type Tell<'t> = dyn FnMut(&HubProgress<'_>) -> ControlFlow<()> + 't;

/// What is asked.
pub(super) struct Connection<'h> {
    hub: &'h Hub,
    endpoint: Uri,
    api: Api,
    repository: String,
    /// Task, and what it needs in words.
    asked: (&'h str, String),
}

/// Why an attempt gave nothing.
enum Attempt {
    /// Another one may.
    Later(String),
    Never(HubError),
}

impl From<HubError> for Attempt {
    fn from(error: HubError) -> Self {
        Self::Never(error)
    }
}

/// An answer that is one.
struct Answer {
    body: BodyReader<'static>,
    /// The first byte of the file that it has.
    from: u64,
    /// Bytes of the whole file.
    size: Option<u64>,
    /// The file's SHA-256, where the hub says so.
    hash: Option<String>,
}

/// A file to be received.
pub(super) struct Wanted<'a> {
    pub(super) url: String,
    pub(super) name: &'a str,
    /// Its number, and how many there are.
    pub(super) number: (usize, usize),
    /// Bytes at most.
    pub(super) limit: u64,
}

impl<'h> Connection<'h> {
    pub(super) fn new(
        hub: &'h Hub,
        repository: &str,
        task: &'h str,
        wanted: String,
    ) -> Result<Self, HubError> {
        let endpoint = hub.endpoint.trim_end_matches('/');
        let refused = |reason: &'static str| {
            // A password may stand before it.
            let shown = endpoint.rsplit('@').next().unwrap_or_default();
            HubError::Endpoint { endpoint: shown.to_owned(), reason }
        };
        let uri: Uri = endpoint.parse().map_err(|_| refused("is no address"))?;
        if !matches!(uri.scheme_str(), Some("https" | "http")) || uri.host().is_none_or(str::is_empty) {
            return Err(refused("is no address"));
        }
        if uri.authority().is_some_and(|a| a.as_str().contains('@')) || uri.query().is_some() {
            return Err(refused("has more in it than a host and a path"));
        }
        // A place that holds no cache and no token: what stands in a home folder is not looked at.
        let api = ApiBuilder::from_cache(Cache::new("/dev/null/none".into()))
            .with_token(hub.token.as_ref().map(|token| token.reveal().to_owned()))
            .with_endpoint(endpoint.to_owned())
            .with_progress(false)
            .build()
            .map_err(|_| refused("cannot be asked"))?;
        Ok(Self { hub, endpoint: uri, api, repository: repository.to_owned(), asked: (task, wanted) })
    }

    fn repo(&self, revision: &str) -> ApiRepo {
        let revision = revision.to_owned();
        self.api.repo(Repo::with_revision(self.repository.clone(), RepoType::Dataset, revision))
    }

    /// The commit of a revision, and the names of its files.
    pub(super) fn list(
        &self,
        revision: &str,
        tell: &mut Tell<'_>,
    ) -> Result<(String, Vec<String>), HubError> {
        let request = self.repo(revision).info_request();
        let url = request.uri_ref().map(Uri::to_string).unwrap_or_default();
        let bad = |expected, found| HubError::Unreadable { url: url.clone(), expected, found };
        let bytes = self.persist(&url, tell, |_| {
            let answer = self.get(&url, 0)?;
            let mut bytes = Vec::new();
            let read = answer.body.take(LONGEST_LIST + 1).read_to_end(&mut bytes);
            read.map_err(|e| Attempt::Later(format!("the list of files was cut short ({e})")))?;
            Ok(bytes)
        })?;
        if bytes.len() as u64 > LONGEST_LIST {
            return Err(bad("a list of files", format!("more than {LONGEST_LIST} bytes")));
        }
        let info: RepoInfo = serde_json::from_slice(&bytes)
            .map_err(|e| bad("a list of files", format!("something else, at {}:{}", e.line(), e.column())))?;
        let is_commit = (7..=64).contains(&info.sha.len()) && info.sha.bytes().all(|b| b.is_ascii_hexdigit());
        if !is_commit {
            return Err(bad("the hash of a commit", "none".to_owned()));
        }
        Ok((info.sha, info.siblings.into_iter().map(|file| file.rfilename).collect()))
    }

    /// Where a file of a commit is.
    pub(super) fn url(&self, commit: &str, file: &str) -> String {
        self.repo(commit).url(&encoded(file))
    }

    /// Writes a file as it comes; its size. What is cut off is gone on with.
    pub(super) fn receive(
        &self,
        wanted: &Wanted<'_>,
        out: &mut File,
        path: &Path,
        tell: &mut Tell<'_>,
    ) -> Result<u64, HubError> {
        let (mut written, mut hash, mut expected) = (0_u64, Sha256::new(), None);
        let bad = |expected, found| HubError::Unreadable { url: wanted.url.clone(), expected, found };
        let failed = |source| HubError::CannotWrite { path: path.to_owned(), source };
        let size = self.persist(&wanted.url, tell, |tell| {
            let mut answer = self.get(&wanted.url, written)?;
            let size = answer.size.ok_or_else(|| bad("an answer with a size", "none".to_owned()))?;
            if size > wanted.limit {
                let (url, limit) = (wanted.url.clone(), wanted.limit);
                return Err(HubError::TooLarge { url, found: size, limit }.into());
            }
            if answer.from != written {
                out.set_len(0).and_then(|()| out.rewind()).map_err(failed)?;
                (written, hash) = (0, Sha256::new());
            }
            expected = answer.hash.or(expected.take());
            let mut piece = vec![0; PIECE];
            loop {
                let (number, files) = wanted.number;
                let progress = HubProgress { file: wanted.name, done: written, of: size, number, files };
                if tell(&progress).is_break() {
                    return Err(HubError::Stopped.into());
                }
                let cut = |why: &str| Attempt::Later(format!("cut short at {written} of {size} bytes{why}"));
                match answer.body.read(&mut piece) {
                    Ok(0) if written < size => return Err(cut("")),
                    Ok(0) => return Ok(size),
                    Ok(read) if written + read as u64 > size => {
                        return Err(bad("as many bytes as were announced", "more".to_owned()).into());
                    }
                    Ok(read) => {
                        out.write_all(&piece[..read]).map_err(failed)?;
                        hash.update(&piece[..read]);
                        written += read as u64;
                    }
                    Err(error) => return Err(cut(&format!(" ({error})"))),
                }
            }
        })?;
        let found: String = hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
        match expected {
            Some(expected) if expected != found => Err(bad("the bytes of the hash that it names", found)),
            _ => Ok(size),
        }
    }

    /// Asks until there is an answer, or as often as is right.
    fn persist<'t, T>(
        &self,
        url: &str,
        tell: &mut Tell<'t>,
        mut ask: impl FnMut(&mut Tell<'t>) -> Result<T, Attempt>,
    ) -> Result<T, HubError> {
        let mut attempts = 0;
        loop {
            match ask(tell) {
                Ok(answer) => return Ok(answer),
                Err(Attempt::Never(error)) => return Err(error),
                Err(Attempt::Later(reason)) => {
                    attempts += 1;
                    if attempts >= self.hub.attempts {
                        return Err(HubError::Unreachable { url: url.to_owned(), reason, attempts });
                    }
                    std::thread::sleep(self.hub.backoff * 2_u32.pow(attempts.min(10) - 1));
                }
            }
        }
    }

    /// The answer to one request from a byte on, wherever the hub keeps it.
    fn get(&self, url: &str, from: u64) -> Result<Answer, Attempt> {
        let mut at = url.to_owned();
        let (mut size, mut hash) = (None, None);
        for _ in 0..=MOST_HOPS {
            let response = self.ask(&at, from)?;
            let text = |name: &str| response.headers().get(name).and_then(|value| value.to_str().ok());
            // Said where the file is pointed to, and not where it lies.
            size = size.or_else(|| text("x-linked-size")?.parse::<u64>().ok());
            hash = hash.or_else(|| text("x-linked-etag").and_then(sha256));
            let status = response.status().as_u16();
            let (task, wanted) = (self.asked.0.to_owned(), self.asked.1.clone());
            let refused = |advice| HubError::Refused { task, wanted, url: url.to_owned(), status, advice };
            let bad = |expected, found| HubError::Unreadable { url: url.to_owned(), expected, found };
            match status {
                200 | 206 => {
                    let begin = text("content-range").and_then(range);
                    let (begin, whole) = match (status, begin) {
                        (206, Some(range)) => range,
                        (206, None) => return Err(bad("Content-Range", "none".to_owned()).into()),
                        _ => (0, text("content-length").and_then(|length| length.parse().ok())),
                    };
                    if begin != 0 && begin != from {
                        return Err(bad("the bytes that were asked for", "others".to_owned()).into());
                    }
                    if let (Some(said), Some(sent)) = (size, whole)
                        && said != sent
                    {
                        return Err(bad("one size", format!("{said} and {sent} bytes")).into());
                    }
                    let size = whole.or(size);
                    return Ok(Answer { body: response.into_body().into_reader(), from: begin, size, hash });
                }
                301 | 302 | 303 | 307 | 308 => {
                    let location = text("location").unwrap_or_default();
                    at = self.location(url, &at, location)?;
                }
                401 => {
                    let advice = "there is no such data set, or it is given to those with a token only: \
                                  --download-token FILE";
                    return Err(refused(advice).into());
                }
                403 => {
                    let advice = "accept the terms on the page of the data set, and give the token of who did: \
                                  --download-token FILE";
                    return Err(refused(advice).into());
                }
                404 => return Err(refused("is it still there, and under this name?").into()),
                429 | 500..=599 => return Err(Attempt::Later(format!("the server answers {status}"))),
                _ => return Err(bad("status 200", status.to_string()).into()),
            }
        }
        let found = format!("more than {MOST_HOPS} redirects");
        Err(HubError::Unreadable { url: url.to_owned(), expected: "an answer", found }.into())
    }

    /// One request. Nothing but the hub itself sees the token.
    fn ask(&self, at: &str, from: u64) -> Result<Response<Body>, Attempt> {
        let later = |error: ureq::Error| {
            Attempt::Later(match error {
                ureq::Error::HostNotFound => "there is no such host".to_owned(),
                ureq::Error::Io(error) if error.kind() == std::io::ErrorKind::ConnectionRefused => {
                    "the connection was refused".to_owned()
                }
                ureq::Error::Timeout(_) => "no answer in time".to_owned(),
                other => other.to_string(),
            })
        };
        let mut request = self.repo("main").info_request().uri(at);
        let own = at.parse().is_ok_and(|uri: Uri| same_origin(&uri, &self.endpoint));
        if let Some(headers) = request.headers_mut()
            && !own
        {
            headers.remove(header::AUTHORIZATION);
        }
        if from > 0 {
            request = request.header(header::RANGE, format!("bytes={from}-"));
        }
        let wait = Some(self.hub.timeout);
        let request = request
            .config()
            // The default is what the environment says.
            .proxy(None)
            .max_redirects(0)
            .max_redirects_will_error(false)
            .http_status_as_error(false)
            // The bytes are those of the file: sizes and hashes are of these.
            .accept_encoding("identity")
            .timeout_resolve(wait)
            .timeout_connect(wait)
            .timeout_recv_response(wait)
            .timeout_per_read(wait)
            .build();
        request.call().map_err(later)
    }

    /// Where a redirect leads, if it is to the hub or to where it keeps its files.
    fn location(&self, url: &str, at: &str, location: &str) -> Result<String, HubError> {
        let elsewhere = |location: String| HubError::Redirect { url: url.to_owned(), location };
        let base: Uri = at.parse().map_err(|_| elsewhere("no address".to_owned()))?;
        let origin = |uri: &Uri| Some(format!("{}://{}", uri.scheme_str()?, uri.authority()?));
        let absolute = if location.starts_with('/') && !location.starts_with("//") {
            origin(&base).unwrap_or_default() + location
        } else {
            location.to_owned()
        };
        let target: Uri = absolute.parse().map_err(|_| elsewhere("no address".to_owned()))?;
        // Without the query, which may hold a signature.
        let shown = || elsewhere(origin(&target).unwrap_or_else(|| "no address".to_owned()));
        let safe = target.scheme_str() == Some("https")
            || (target.scheme_str() == Some("http") && self.endpoint.scheme_str() == Some("http"));
        let host = target.host().unwrap_or_default().to_ascii_lowercase();
        let mut known = self.endpoint.host().into_iter().chain(self.hub.storage.iter().map(String::as_str));
        let below =
            |known: &str| host.strip_suffix(known).is_some_and(|rest| rest.is_empty() || rest.ends_with('.'));
        if safe && !host.is_empty() && known.any(below) { Ok(absolute) } else { Err(shown()) }
    }
}

/// Whether two addresses are of one server.
fn same_origin(a: &Uri, b: &Uri) -> bool {
    a.scheme() == b.scheme() && a.authority() == b.authority()
}

/// The first byte and the whole size of `bytes FIRST-LAST/SIZE`.
fn range(value: &str) -> Option<(u64, Option<u64>)> {
    let (bytes, size) = value.strip_prefix("bytes ")?.split_once('/')?;
    Some((bytes.split_once('-')?.0.parse().ok()?, size.parse().ok()))
}

/// The SHA-256 that a tag is, if it is one.
fn sha256(tag: &str) -> Option<String> {
    let tag = tag.trim_start_matches("W/").trim_matches('"');
    (tag.len() == 64 && tag.bytes().all(|b| b.is_ascii_hexdigit())).then(|| tag.to_ascii_lowercase())
}

/// A path as a part of an address.
fn encoded(file: &str) -> String {
    let byte = |b: u8| match b {
        b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' | b'/' => {
            char::from(b).to_string()
        }
        other => format!("%{other:02X}"),
    };
    file.bytes().map(byte).collect()
}
