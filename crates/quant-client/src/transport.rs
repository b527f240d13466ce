//! The connection: one address, no proxy, no redirect, and a time-out between two bytes.

use crate::options::ServerOptions;
use std::io;
use std::time::Duration;
use ureq::unversioned::resolver::DefaultResolver;
use ureq::unversioned::transport::{
    Buffers, ConnectionDetails, Connector, NextTimeout, TcpConnector, Transport, time,
};
use ureq::{Agent, Error};

/// Connections kept for the next request; as many requests run at a time in most evaluations.
const KEPT: usize = 64;

/// What asks the server. Nothing in it looks at the environment: the connectors are listed here, and no proxy's is among them.
pub(crate) fn agent(options: &ServerOptions) -> Agent {
    let config = Agent::config_builder()
        .proxy(None)
        .max_redirects(0)
        .max_redirects_will_error(false)
        .http_status_as_error(false)
        .user_agent(concat!("quant-client/", env!("CARGO_PKG_VERSION")))
        .timeout_global(Some(options.timeout))
        .timeout_resolve(Some(options.connect_timeout))
        .timeout_connect(Some(options.connect_timeout))
        .max_idle_connections(KEPT)
        .max_idle_connections_per_host(KEPT)
        .build();
    let idle = IdleConnector(options.idle_timeout);
    let connector = ().chain(TcpConnector::default());
    #[cfg(feature = "tls")]
    let connector = connector.chain(ureq::unversioned::transport::RustlsConnector::default());
    Agent::with_parts(config, connector.chain(idle), DefaultResolver::default())
}

/// The reason of an error of reading that this module made.
#[derive(Clone, Copy, Debug, thiserror::Error)]
#[error("nothing arrived for {0:?}")]
pub(crate) struct Idle(Duration);

/// Whether nothing arrived for too long.
pub(crate) fn is_idle(error: &io::Error) -> bool {
    error.get_ref().is_some_and(|inner| inner.is::<Idle>())
}

/// Wraps every connection in an [`IdleTransport`].
#[derive(Debug)]
struct IdleConnector(Duration);

impl<In: Transport> Connector<In> for IdleConnector {
    type Out = IdleTransport<In>;

    fn connect(&self, _: &ConnectionDetails<'_>, chained: Option<In>) -> Result<Option<Self::Out>, Error> {
        Ok(chained.map(|inner| IdleTransport { inner, idle: self.0 }))
    }
}

/// A connection whose every wait is bounded; `ureq` bounds the sum of them only.
#[derive(Debug)]
struct IdleTransport<In> {
    inner: In,
    idle: Duration,
}

impl<In: Transport> IdleTransport<In> {
    fn bounded<T>(
        &mut self,
        timeout: NextTimeout,
        wait: impl FnOnce(&mut In, NextTimeout) -> Result<T, Error>,
    ) -> Result<T, Error> {
        let idle = match timeout.after {
            time::Duration::Exact(after) if after <= self.idle => return wait(&mut self.inner, timeout),
            _ => NextTimeout { after: self.idle.into(), reason: timeout.reason },
        };
        wait(&mut self.inner, idle).map_err(|error| match error {
            Error::Timeout(_) => Error::Io(io::Error::new(io::ErrorKind::TimedOut, Idle(self.idle))),
            other => other,
        })
    }
}

impl<In: Transport> Transport for IdleTransport<In> {
    fn buffers(&mut self) -> &mut dyn Buffers {
        self.inner.buffers()
    }
    fn transmit_output(&mut self, amount: usize, timeout: NextTimeout) -> Result<(), Error> {
        self.bounded(timeout, |inner, timeout| inner.transmit_output(amount, timeout))
    }
    fn await_input(&mut self, timeout: NextTimeout) -> Result<bool, Error> {
        self.bounded(timeout, |inner, timeout| inner.await_input(timeout))
    }
    // Asked before a kept connection is used again. What the last answer had too much must not be taken for the next one.
    fn is_open(&mut self) -> bool {
        self.inner.buffers().input().is_empty() && self.inner.is_open()
    }
    fn is_tls(&self) -> bool {
        self.inner.is_tls()
    }
}
