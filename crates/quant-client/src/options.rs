//! Which server, and how patient one is with it.

use crate::error::ClientError;
use crate::key::ApiKey;
use std::time::Duration;
use ureq::http::Uri;

/// Which server is asked, and how patiently.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct ServerOptions {
    /// `http://HOST:PORT`, with a path where the server has one; a `/v1` at its end makes no difference.
    pub url: String,
    /// Name of the model; none takes the only one of `GET /v1/models`.
    pub model: Option<String>,
    /// Sent as `Authorization: Bearer`. Over `http://` it travels unencrypted.
    pub key: Option<ApiKey>,
    /// Longest time of one attempt, from the connection to the last byte.
    pub timeout: Duration,
    /// Longest time between two bytes, also before the first: a server that is busy with others sends none until it begins.
    pub idle_timeout: Duration,
    /// Longest time for a connection.
    pub connect_timeout: Duration,
    /// How often a request is sent again after a connection that failed or was cut, a status 429, or one from 500 on.
    pub retries: u32,
    /// The time before the first of these; doubled for each further one, and shortened by up to half by a generator keyed by
    /// the request.
    pub backoff: Duration,
    /// Longest time before any of them. A server that asks for more (`Retry-After`) is given up.
    pub most_backoff: Duration,
    /// Longest answer in bytes.
    pub max_bytes: usize,
}

impl ServerOptions {
    /// The server at `url`, its only model, no key; two hours for an answer, five minutes without a byte, ten seconds for a
    /// connection, four more attempts from half a second on and at most a minute apart, 256 MiB.
    pub fn new(url: impl Into<String>) -> Self {
        Self {
            url: url.into(),
            model: None,
            key: None,
            timeout: Duration::from_secs(7200),
            idle_timeout: Duration::from_secs(300),
            connect_timeout: Duration::from_secs(10),
            retries: 4,
            backoff: Duration::from_millis(500),
            most_backoff: Duration::from_secs(60),
            max_bytes: 256 << 20,
        }
    }

    pub(crate) fn check(&self) -> Result<(), ClientError> {
        for (name, value) in [
            ("timeout", self.timeout),
            ("idle_timeout", self.idle_timeout),
            ("connect_timeout", self.connect_timeout),
        ] {
            if value.is_zero() {
                let expected = "a time above zero";
                return Err(ClientError::Argument { name, value: format!("{value:?}"), expected });
            }
        }
        if self.max_bytes == 0 {
            let (name, expected) = ("max_bytes", "at least 1");
            return Err(ClientError::Argument { name, value: "0".to_owned(), expected });
        }
        Ok(())
    }
}

/// The address that `/v1/…` is appended to.
pub(crate) fn base(url: &str) -> Result<String, ClientError> {
    // A password must not be shown.
    let shown = || match url.rsplit_once('@') {
        Some((_, host)) => format!("…@{host}"),
        None => url.to_owned(),
    };
    let refused = |reason: String| ClientError::Url { url: shown(), reason };
    let uri: Uri = url.parse().map_err(|e| refused(format!("is none: {e}")))?;
    match uri.scheme_str() {
        Some("http") => {}
        Some("https") if cfg!(feature = "tls") => {}
        Some("https") => {
            return Err(refused("needs TLS, which this build lacks: build with the feature tls".to_owned()));
        }
        Some(other) => return Err(refused(format!("has the scheme {other:?}"))),
        None => return Err(refused("has no scheme".to_owned())),
    }
    if uri.host().is_none_or(str::is_empty) {
        return Err(refused("has no host".to_owned()));
    }
    if url.contains('@') {
        return Err(refused("has a user name or a password: give a key by a file or a variable".to_owned()));
    }
    if uri.query().is_some() || url.contains('#') {
        return Err(refused("has a query or a fragment".to_owned()));
    }
    let path = url.trim_end_matches('/');
    Ok(path.strip_suffix("/v1").unwrap_or(path).trim_end_matches('/').to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_have_one_form() {
        for url in ["http://h:8000", "http://h:8000/", "http://h:8000/v1", "http://h:8000/v1/"] {
            assert_eq!(base(url).unwrap(), "http://h:8000", "{url}");
        }
        assert_eq!(base("http://h/proxy/a/v1").unwrap(), "http://h/proxy/a");
        assert_eq!(base("http://[::1]:80").unwrap(), "http://[::1]:80");
    }

    #[test]
    fn other_urls_are_refused() {
        for (url, reason) in [
            ("h:8000", "scheme"),
            ("localhost", "scheme"),
            ("ftp://h", "\"ftp\""),
            ("http://", "is none"),
            ("http://h?x=1", "query"),
            ("http://h#x", "fragment"),
            ("http://a b", "is none"),
        ] {
            let error = base(url).unwrap_err().to_string();
            assert!(error.contains(reason) && error.contains("expected http://HOST:PORT"), "{url}: {error}");
        }
        let error = base("http://me:secret@h").unwrap_err().to_string();
        assert!(error.contains("password") && !error.contains("secret"), "{error}");
        if !cfg!(feature = "tls") {
            assert!(base("https://h").unwrap_err().to_string().contains("feature tls"));
        }
    }

    #[test]
    fn times_and_sizes_are_above_zero() {
        let mut options = ServerOptions::new("http://h");
        assert!(options.check().is_ok());
        options.idle_timeout = Duration::ZERO;
        assert_eq!(
            options.check().unwrap_err().to_string(),
            "idle_timeout is 0ns, expected a time above zero"
        );
        let options = ServerOptions { max_bytes: 0, ..ServerOptions::new("http://h") };
        assert!(options.check().unwrap_err().to_string().contains("max_bytes"));
    }
}
