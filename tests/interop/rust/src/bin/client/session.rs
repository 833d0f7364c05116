//! One connection to one node, the errors that end it, and the way to the next one.
use std::{cmp::max, env, fmt, fs, time::Duration};

use tonic::{
    Code, Request, Status,
    metadata::MetadataValue,
    transport::{Certificate, Channel, ClientTlsConfig, Endpoint},
};
use tonic_types::StatusExt as _;

use crate::api::Failure;

const FIRST_PAUSE: Duration = Duration::from_millis(50);
const LAST_PAUSE: Duration = Duration::from_secs(2);
const CONNECT: Duration = Duration::from_secs(5);
/// A node may be set to take messages above gRPC's usual bound.
pub const MAX_MESSAGE_BYTES: usize = 64 << 20;

/// Why a session ended.
#[derive(Debug)]
pub enum Problem {
    /// The status of a call.
    Status(Box<Status>),
    /// What the broker says inside a stream, where a status would end everything.
    Refused(Box<Failure>),
    /// The connection or the stream is to be left for another one.
    Lost(String),
    /// An error of our own that trying again cannot mend.
    Definite(String),
}

impl Problem {
    /// Nothing was changed, and the same request would be answered in the same way.
    fn is_definite(&self) -> bool {
        match self {
            Self::Status(status) => is_definite(status.code()) && self.retry_after().is_zero(),
            Self::Refused(failure) => is_definite(Code::from(failure.code)) && self.retry_after().is_zero(),
            Self::Lost(_) => false,
            Self::Definite(_) => true,
        }
    }

    /// Above zero: worth trying again after this time.
    fn retry_after(&self) -> Duration {
        match self {
            Self::Status(status) => {
                status.get_details_retry_info().and_then(|info| info.retry_delay).unwrap_or_default()
            }
            Self::Refused(failure) => Duration::from_millis(failure.retry_after_ms.max(0) as u64),
            Self::Lost(_) | Self::Definite(_) => Duration::ZERO,
        }
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        match self {
            Self::Status(status) => write!(f, "{:?}: {}", status.code(), status.message()),
            Self::Refused(failure) => write!(f, "{}: {}", failure.reason, failure.message),
            Self::Lost(text) | Self::Definite(text) => f.write_str(text),
        }
    }
}

impl From<Failure> for Problem {
    fn from(failure: Failure) -> Self {
        Self::Refused(Box::new(failure))
    }
}

impl From<Status> for Problem {
    fn from(status: Status) -> Self {
        Self::Status(Box::new(status))
    }
}

fn is_definite(code: Code) -> bool {
    use Code::*;
    matches!(
        code,
        InvalidArgument
            | NotFound
            | AlreadyExists
            | OutOfRange
            | FailedPrecondition
            | PermissionDenied
            | Unauthenticated
            | Unimplemented
            | ResourceExhausted
            | DataLoss
    )
}

/// A connection to one node; any node serves any channel.
pub struct Session {
    pub channel: Channel,
    /// Whether the node did its work: then the next pause is a short one.
    pub worked: bool,
}

/// What is done over one connection. What was not confirmed when that breaks, the next call does again.
pub trait Client {
    async fn work(&mut self, session: &mut Session) -> Result<(), Problem>;
}

/// Opens session after session, each at the next address, with pauses that grow until one of them works.
pub async fn run(addresses: &str, mut client: impl Client) -> Result<(), Problem> {
    let mut pause = FIRST_PAUSE;
    for address in addresses.split(',').cycle() {
        let problem = match connect(address).await {
            Ok(mut session) => match client.work(&mut session).await {
                Ok(()) => break,
                Err(problem) => {
                    if session.worked {
                        pause = FIRST_PAUSE;
                    }
                    problem
                }
            },
            Err(problem) => problem,
        };
        if problem.is_definite() {
            return Err(problem);
        }
        eprintln!("trying again: {problem}");
        tokio::time::sleep(max(problem.retry_after(), jittered(pause)?)).await;
        pause = LAST_PAUSE.min(2 * pause);
    }
    Ok(())
}

async fn connect(address: &str) -> Result<Session, Problem> {
    let ca = env::var("RINGPOST_CA").unwrap_or_default();
    let scheme = if ca.is_empty() { "http" } else { "https" };
    let wrong = |error: tonic::transport::Error| Problem::Definite(format!("{address}: {error}"));
    let mut endpoint = Endpoint::from_shared(format!("{scheme}://{address}"))
        .map_err(wrong)?
        .connect_timeout(CONNECT)
        // A node that is frozen or cut off is noticed even while nothing is to be said.
        .http2_keep_alive_interval(Duration::from_secs(30))
        .keep_alive_timeout(Duration::from_secs(10));
    if !ca.is_empty() {
        let pem = fs::read(&ca).map_err(|error| Problem::Definite(format!("{ca}: {error}")))?;
        let tls = ClientTlsConfig::new().ca_certificate(Certificate::from_pem(pem));
        endpoint = endpoint.tls_config(tls).map_err(wrong)?;
    }
    match endpoint.connect().await {
        Ok(channel) => Ok(Session { channel, worked: false }),
        Err(error) => Err(Problem::Lost(format!("{address}: {error}"))),
    }
}

/// The request of a call, with the token.
pub fn signed<T>(message: T) -> Result<Request<T>, Problem> {
    let mut request = Request::new(message);
    let token = env::var("RINGPOST_TOKEN").unwrap_or_default();
    if !token.is_empty() {
        let value = MetadataValue::try_from(format!("Bearer {token}"))
            .map_err(|error| Problem::Definite(format!("RINGPOST_TOKEN: {error}")))?;
        request.metadata_mut().insert("authorization", value);
    }
    Ok(request)
}

pub fn random() -> Result<u64, Problem> {
    getrandom::u64().map_err(|error| Problem::Definite(error.to_string()))
}

fn jittered(pause: Duration) -> Result<Duration, Problem> {
    let half = pause / 2;
    Ok(half + half.mul_f64(random()? as f64 / u64::MAX as f64))
}
