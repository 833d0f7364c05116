//! A client of Ringpost, written from the .proto files. README.md in the folder of all clients says how it is called.
mod publisher;
mod session;
mod subscriber;

#[allow(clippy::all, rustdoc::all)]
pub mod api {
    tonic::include_proto!("ringpost.v1");
}

use std::{collections::HashMap, process::ExitCode};

use publisher::Publisher;
use session::Problem;
use subscriber::Subscriber;

/// The arguments behind the mode, `--name value` pairs.
pub struct Arguments(HashMap<String, String>);

impl Arguments {
    pub fn text(&self, name: &str) -> Result<String, Problem> {
        self.0.get(name).cloned().ok_or_else(|| Problem::Definite(format!("--{name} is missing")))
    }

    pub fn number(&self, name: &str) -> Result<u64, Problem> {
        self.text(name)?.parse().map_err(|error| Problem::Definite(format!("--{name}: {error}")))
    }

    /// `None` when it is not given.
    pub fn optional(&self, name: &str) -> Result<Option<u64>, Problem> {
        if self.0.contains_key(name) { self.number(name).map(Some) } else { Ok(None) }
    }
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    let mut words = std::env::args().skip(1);
    let mode = words.next().unwrap_or_default();
    let mut arguments = Arguments(HashMap::new());
    while let (Some(name), Some(value)) = (words.next(), words.next()) {
        arguments.0.insert(name.trim_start_matches("--").to_owned(), value);
    }
    match run(&mode, &arguments).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(problem) => {
            eprintln!("{problem}");
            ExitCode::FAILURE
        }
    }
}

async fn run(mode: &str, arguments: &Arguments) -> Result<(), Problem> {
    let address = arguments.text("address")?;
    match mode {
        "publish" => session::run(&address, Publisher::new(arguments)?).await,
        "subscribe" | "work" => session::run(&address, Subscriber::new(arguments)?).await,
        _ => Err(Problem::Definite("usage: client publish|subscribe|work --name value ...".to_owned())),
    }
}
