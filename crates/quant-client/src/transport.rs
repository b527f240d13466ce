//! The connection: one address, no proxy, no redirect, and a time-out between two bytes. A kept connection on which the last answer left
//! bytes is not used again: `ureq` sees to that, and a test holds it to it.

use crate::options::ServerOptions;
use ureq::Agent;

/// Connections kept for the next request; as many requests run at a time in most evaluations.
const KEPT: usize = 64;

/// What asks the server.
pub(crate) fn agent(options: &ServerOptions) -> Agent {
    Agent::config_builder()
        // The default is what the environment says.
        .proxy(None)
        .max_redirects(0)
        .max_redirects_will_error(false)
        .http_status_as_error(false)
        .user_agent(concat!("quant-client/", env!("CARGO_PKG_VERSION")))
        .timeout_global(Some(options.timeout))
        .timeout_per_read(Some(options.idle_timeout))
        .timeout_per_write(Some(options.idle_timeout))
        .timeout_resolve(Some(options.connect_timeout))
        .timeout_connect(Some(options.connect_timeout))
        .max_idle_connections(KEPT)
        .max_idle_connections_per_host(KEPT)
        .build()
        .new_agent()
}
