//! The page in a browser: headless Chromium by WebDriver, where both programs are installed.

use crate::fake::{Fake, Running, client};
use serde_json::{Value, json};
use std::{
    io::{BufRead, BufReader},
    process::{Child, Command, Stdio},
    time::Duration,
};

/// A browser that ends with the value.
struct Browser {
    driver: Child,
    http: reqwest::Client,
    session: String,
}

impl Drop for Browser {
    fn drop(&mut self) {
        // The driver ends its browser with itself when it is told to, and else when its pipe is gone.
        let _ = self.driver.kill();
        let _ = self.driver.wait();
    }
}

fn program(names: &[&str]) -> Option<String> {
    let found = |name: &&str| Command::new(name).arg("--version").output().is_ok_and(|output| output.status.success());
    names.iter().copied().find(|name| found(name)).map(str::to_owned)
}

impl Browser {
    /// `None` where there is none.
    async fn start() -> Option<Self> {
        let (Some(browser), Some(driver)) =
            (program(&["chromium", "chromium-browser", "google-chrome"]), program(&["chromedriver"]))
        else {
            eprintln!("skipped: no chromium and chromedriver");
            return None;
        };
        let mut driver =
            Command::new(driver).arg("--port=0").stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
        let lines = BufReader::new(driver.stdout.take().unwrap()).lines();
        let port = lines.map_while(Result::ok).find_map(|line| {
            let (_, rest) = line.split_once("started successfully on port ")?;
            rest.trim_end_matches('.').parse::<u16>().ok()
        });
        let base = format!("http://127.0.0.1:{}", port.expect("the driver says where it listens"));
        let http = client();
        let options = json!({
            "binary": which(&browser),
            "args": ["--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--window-size=1200,900"],
        });
        let capabilities =
            json!({"browserName": "chrome", "goog:chromeOptions": options, "goog:loggingPrefs": {"browser": "ALL"}});
        let body = json!({"capabilities": {"alwaysMatch": capabilities}});
        let answer: Value =
            http.post(format!("{base}/session")).json(&body).send().await.unwrap().json().await.unwrap();
        let id = answer["value"]["sessionId"].as_str().unwrap_or_else(|| panic!("no session: {answer}")).to_owned();
        Some(Self { driver, http, session: format!("{base}/session/{id}") })
    }

    async fn post(&self, path: &str, body: Value) -> Value {
        let answer = self.http.post(format!("{}/{path}", self.session)).json(&body).send().await.unwrap();
        let answer: Value = answer.json().await.unwrap();
        assert!(answer["value"]["error"].is_null(), "{path}: {answer}");
        answer["value"].clone()
    }

    async fn open(&self, url: &str) {
        self.post("url", json!({"url": url})).await;
    }

    async fn run(&self, script: &str) -> Value {
        self.post("execute/sync", json!({"script": script, "args": []})).await
    }

    /// Waits until a script says something that is neither null nor false.
    async fn wait(&self, what: &str, script: &str) -> Value {
        for _ in 0..200 {
            let value = self.run(script).await;
            if !matches!(value, Value::Null | Value::Bool(false)) {
                return value;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        let page = self.run("return document.body.innerText").await;
        panic!("never happened: {what}\n{page}");
    }

    async fn console_errors(&self) -> Vec<Value> {
        let all = self.post("se/log", json!({"type": "browser"})).await;
        all.as_array().unwrap().iter().filter(|entry| entry["level"] == "SEVERE").cloned().collect()
    }

    async fn close(self) {
        let _ = self.http.delete(&self.session).send().await;
    }
}

fn which(name: &str) -> String {
    let paths = std::env::var_os("PATH").unwrap_or_default();
    let found = std::env::split_paths(&paths).map(|folder| folder.join(name)).find(|path| path.is_file());
    found.map_or_else(|| name.to_owned(), |path| path.display().to_string())
}

const SAY: &str = "document.getElementById('prompt').value = 'hello there';
                   document.getElementById('chat-form').requestSubmit(); return true";
const ANSWER: &str = "return document.querySelector('.message.assistant')?.textContent === 'w0 w1 w2 w3 w4 '";
const GENERATED: &str = "return document.querySelector('[data-name=\"Tokens generated\"] dd')?.textContent === '5'";
const NO_SCROLL: &str = "return document.documentElement.scrollWidth <= window.innerWidth";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_chat_and_its_numbers() {
    let Some(browser) = Browser::start().await else { return };
    let server = Running::start(Fake::default()).await;
    browser.open(&server.url("/")).await;
    browser.wait("the model is listed", "return document.getElementById('model').value === 'org/fake-1'").await;
    browser.wait("it is ready", "return document.getElementById('health').textContent === 'ready'").await;
    browser.run(SAY).await;
    browser.wait("the answer is there", ANSWER).await;
    browser.wait("the numbers move", GENERATED).await;
    browser.wait("the request is listed", "return document.querySelectorAll('#requests tr').length >= 1").await;
    browser.wait("a histogram is drawn", "return document.querySelectorAll('.bars i').length > 10").await;
    for (width, height) in [(360, 740), (1200, 900)] {
        browser
            .post(
                "goog/cdp/execute",
                json!({
                    "cmd": "Emulation.setDeviceMetricsOverride",
                    "params": {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 500},
                }),
            )
            .await;
        assert_eq!(browser.run("return window.innerWidth").await, width);
        assert_eq!(browser.run(NO_SCROLL).await, true, "no horizontal scroll at {width}");
    }
    let back = "return getComputedStyle(document.body).backgroundColor";
    let mut colors = Vec::new();
    for scheme in ["light", "dark"] {
        let features = json!([{"name": "prefers-color-scheme", "value": scheme}]);
        let body = json!({"cmd": "Emulation.setEmulatedMedia", "params": {"features": features}});
        browser.post("goog/cdp/execute", body).await;
        colors.push(browser.run(back).await);
    }
    assert_ne!(colors[0], colors[1], "light and dark differ");
    let errors = browser.console_errors().await;
    assert!(errors.is_empty(), "{errors:?}");
    browser.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_with_keys_asks_for_one() {
    use edgelm_serve::ServerConfig;
    let Some(browser) = Browser::start().await else { return };
    let config = ServerConfig { api_keys: ["k1"].into_iter().collect(), ..ServerConfig::default() };
    let server = Running::start_with(Fake::default(), config).await;
    browser.open(&server.url("/dashboard")).await;
    browser.wait("the key is asked for", "return !document.getElementById('key-form').hidden").await;
    browser
        .run(
            "document.getElementById('key').value = 'k1';
              document.getElementById('key-form').requestSubmit(); return true",
        )
        .await;
    browser.wait("the model is listed", "return document.getElementById('model').value === 'org/fake-1'").await;
    browser.run(SAY).await;
    browser.wait("the answer is there", ANSWER).await;
    browser.wait("the numbers move", GENERATED).await;
    assert_eq!(browser.run("return localStorage.length").await, 0, "the key stays with the tab");
    browser.close().await;
}
