//! Load for running servers: so many clients at once, each with one request after another, and what they got.
//!
//! ```text
//! cargo run --release -p edgelm-serve --example load -- http://127.0.0.1:8080 [URL ...] [--streams 1,2,4,8,32] [--prompt 128]
//!     [--tokens 64] [--requests 4] [--shared 0] [--long 0] [--rounds 1]
//! ```
//!
//! Several servers, of any program that has OpenAI's `/v1/completions`, get the same load in turns (A B A B with `--rounds 2`).
//! Prompts are random token ids, so that nothing of one helps another, but for the first `--shared` of each. With `--long N`, a
//! prompt of N tokens comes in beside the streams, and the time between their tokens while it is computed is told apart.

use clap::Parser;
use futures::{StreamExt, future::join_all};
use serde_json::{Value, json};
use std::{
    error::Error,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

type Outcome<T> = Result<T, Box<dyn Error + Send + Sync>>;

/// Puts the same load on running servers, in turns.
#[derive(Clone, Parser)]
#[command(name = "load")]
struct Load {
    /// Address of a server, such as http://127.0.0.1:8080
    #[arg(value_name = "URL", required = true)]
    servers: Vec<String>,
    /// Clients at once, one run for each number
    #[arg(long, value_delimiter = ',', default_values_t = [1, 2, 4, 8, 32])]
    streams: Vec<usize>,
    /// Tokens of each prompt
    #[arg(long, default_value_t = 128, value_parser = at_least_one)]
    prompt: usize,
    /// Tokens of each answer
    #[arg(long, default_value_t = 64, value_parser = at_least_one)]
    tokens: usize,
    /// Requests of each client
    #[arg(long, default_value_t = 4)]
    requests: usize,
    /// Tokens at the beginning that all prompts have in common
    #[arg(long, default_value_t = 0)]
    shared: usize,
    /// Tokens of a prompt that comes in beside the streams; 0: none
    #[arg(long, default_value_t = 0)]
    long: usize,
    /// How often each load is put on each server
    #[arg(long, default_value_t = 1)]
    rounds: usize,
}

fn at_least_one(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(0) => Err("must be 1 or more".into()),
        Ok(number) => Ok(number),
        Err(error) => Err(format!("{error}")),
    }
}

#[derive(Clone)]
struct Server {
    url: String,
    model: String,
}

/// One request as its client saw it.
struct Seen {
    asked: Instant,
    tokens: Vec<Instant>,
    cached: u64,
}

/// SplitMix64.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Ids that every model with a text vocabulary has.
    fn ids(&mut self, count: usize) -> Vec<u64> {
        (0..count).map(|_| 100 + self.next() % 150).collect()
    }
}

fn main() -> Outcome<()> {
    // The error means that somebody was first, which nobody is.
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(run())
}

async fn run() -> Outcome<()> {
    // A connection for each request: a server may have closed one that waited for its turn.
    let client = reqwest::Client::builder().no_proxy().pool_max_idle_per_host(0).build()?;
    let load = Load::parse();
    let mut servers = Vec::new();
    for url in &load.servers {
        let models: Value = client.get(format!("{url}/v1/models")).send().await?.json().await?;
        let model = models["data"][0]["id"].as_str().ok_or("no model")?.to_owned();
        let server = Server { url: url.clone(), model };
        // What the first pass over the weights costs more is nobody's latency.
        ask(client.clone(), server.clone(), Random(0).ids(16), 4).await?;
        servers.push(server);
    }
    let Load { prompt, tokens, requests, shared, .. } = load;
    println!("prompts of {prompt} tokens ({shared} shared), {tokens} generated, {requests} requests a stream\n");
    println!("| server | streams | tok/s | TTFT p50 ms | p95 | p99 | ITL p50 ms | p95 | p99 | cached % |");
    println!("| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |");
    for &streams in &load.streams {
        for _ in 0..load.rounds {
            for server in &servers {
                measure(&client, server, &load, streams).await?;
            }
        }
    }
    Ok(())
}

async fn measure(client: &reqwest::Client, server: &Server, load: &Load, streams: usize) -> Outcome<()> {
    let began = Instant::now();
    let seed = SystemTime::now().duration_since(UNIX_EPOCH)?.as_nanos() as u64;
    let shared = Random(seed).ids(load.shared.min(load.prompt));
    let tasks = (0..streams as u64).map(|stream| {
        let (client, server, load, shared) = (client.clone(), server.clone(), load.clone(), shared.clone());
        tokio::spawn(async move {
            let mut random = Random(seed.wrapping_add(1 + stream * 7919 + (streams as u64) * 104_729));
            let mut seen = Vec::new();
            for _ in 0..load.requests {
                let mut prompt = shared.clone();
                prompt.extend(random.ids(load.prompt - shared.len()));
                seen.push(ask(client.clone(), server.clone(), prompt, load.tokens).await?);
            }
            Outcome::Ok(seen)
        })
    });
    let tasks: Vec<_> = tasks.collect();
    let long = async {
        if load.long == 0 {
            return Outcome::Ok(None);
        }
        // When all streams have their prompts behind them.
        tokio::time::sleep(Duration::from_millis(1500)).await;
        let prompt = Random(seed ^ 0x10_ac).ids(load.long);
        Ok(Some(ask(client.clone(), server.clone(), prompt, 1).await?))
    };
    let (all, long) = tokio::join!(join_all(tasks), long);
    let mut seen = Vec::new();
    for task in all {
        seen.extend(task??);
    }
    let time = began.elapsed().as_secs_f64();
    let count: usize = seen.iter().map(|it| it.tokens.len()).sum();
    let first = seen.iter().filter_map(|it| Some(*it.tokens.first()? - it.asked));
    let first = sorted(first);
    let cached: u64 = seen.iter().map(|it| it.cached).sum();
    let prompts = load.prompt * seen.len();
    let between = sorted(seen.iter().flat_map(|it| it.tokens.windows(2).map(|two| two[1] - two[0])));
    println!(
        "| {} | {streams} | {:.1} | {:.1} | {:.1} | {:.1} | {:.2} | {:.2} | {:.2} | {:.0} |",
        server.url.trim_start_matches("http://"),
        count as f64 / time,
        at(&first, 0.5),
        at(&first, 0.95),
        at(&first, 0.99),
        at(&between, 0.5),
        at(&between, 0.95),
        at(&between, 0.99),
        100.0 * cached as f64 / prompts as f64,
    );
    if let Some(long) = long? {
        let end = long.tokens.first().copied().unwrap_or_else(Instant::now);
        let inside = |two: &&[Instant]| two[0] >= long.asked && two[1] <= end;
        let (beside, alone): (Vec<_>, Vec<_>) =
            seen.iter().flat_map(|it| it.tokens.windows(2)).partition(|two| inside(two));
        let times = |windows: Vec<&[Instant]>| sorted(windows.into_iter().map(|two| two[1] - two[0]));
        let (beside, alone) = (times(beside), times(alone));
        println!(
            "  beside a prompt of {} tokens (TTFT {:.0} ms): ITL p50 {:.2}, p95 {:.2} ms, without it p50 {:.2}, p95 {:.2} ms: p95 x {:.2}",
            load.long,
            (end - long.asked).as_secs_f64() * 1e3,
            at(&beside, 0.5),
            at(&beside, 0.95),
            at(&alone, 0.5),
            at(&alone, 0.95),
            at(&beside, 0.95) / at(&alone, 0.95)
        );
    }
    Ok(())
}

async fn ask(client: reqwest::Client, server: Server, prompt: Vec<u64>, tokens: usize) -> Outcome<Seen> {
    let body = json!({
        "model": server.model, "prompt": prompt, "max_tokens": tokens, "temperature": 0, "ignore_eos": true, "stream": true,
        "stream_options": {"include_usage": true}, "logprobs": 0,
    });
    let asked = Instant::now();
    let response = client.post(format!("{}/v1/completions", server.url)).json(&body).send().await?;
    if !response.status().is_success() {
        return Err(format!("{}: {}", response.status(), response.text().await?).into());
    }
    let mut seen = Seen { asked, tokens: Vec::new(), cached: 0 };
    let mut body = response.bytes_stream();
    let mut held = Vec::new();
    while let Some(bytes) = body.next().await {
        held.extend_from_slice(&bytes?);
        let now = Instant::now();
        while let Some(end) = held.windows(2).position(|two| two == b"\n\n") {
            let event: Vec<u8> = held.drain(..end + 2).collect();
            let Some(data) = event.strip_prefix(b"data: ") else { continue };
            let Ok(chunk) = serde_json::from_slice::<Value>(data) else { continue };
            if !chunk["error"].is_null() {
                return Err(chunk["error"].to_string().into());
            }
            // Not every server sends something for each token that is asked for without its probability.
            let choice = &chunk["choices"][0];
            if choice.is_object() && (!choice["logprobs"].is_null() || choice["finish_reason"].is_null()) {
                seen.tokens.push(now);
            }
            seen.cached += chunk["usage"]["prompt_tokens_details"]["cached_tokens"].as_u64().unwrap_or(0);
        }
    }
    Ok(seen)
}

fn sorted(times: impl Iterator<Item = Duration>) -> Vec<f64> {
    let mut times: Vec<f64> = times.map(|time| time.as_secs_f64() * 1e3).collect();
    times.sort_by(f64::total_cmp);
    times
}

fn at(sorted: &[f64], quantile: f64) -> f64 {
    let last = sorted.len().saturating_sub(1) as f64;
    sorted.get((last * quantile).round() as usize).copied().unwrap_or(f64::NAN)
}
