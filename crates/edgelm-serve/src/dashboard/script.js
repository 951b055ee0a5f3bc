"use strict";
// No library and no page of another origin: all data comes from this server, all text is set as text.

const KEY = "edgelm-api-key";
const POLL_MS = 1000;
const POINTS = 120;
const $ = (id) => document.getElementById(id);

function element(name, attributes = {}, ...children) {
  const made = document.createElement(name);
  Object.assign(made, attributes);
  made.append(...children);
  return made;
}

// The key lives as long as the tab.
const key = () => sessionStorage.getItem(KEY);

function ask(path, options = {}) {
  const headers = { ...options.headers };
  if (key()) headers.authorization = `Bearer ${key()}`;
  return fetch(path, { ...options, headers });
}

async function failure(response) {
  try {
    const body = await response.json();
    return body.error.message ?? JSON.stringify(body);
  } catch {
    return `${response.status} ${response.statusText}`;
  }
}

function wantKey(isWanted) {
  $("key-form").hidden = !isWanted;
  $("forget").hidden = isWanted || !key();
}

$("key-form").addEventListener("submit", (event) => {
  event.preventDefault();
  sessionStorage.setItem(KEY, $("key").value.trim());
  $("key").value = "";
  wantKey(false);
  listModels();
});

$("forget").addEventListener("click", () => {
  sessionStorage.removeItem(KEY);
  wantKey(true);
});

// ---- Chat

let conversation = [];
let running = null;

function addMessage(role, text) {
  const message = element("div", { className: `message ${role}`, textContent: text });
  $("messages").append(message);
  $("messages").scrollTop = $("messages").scrollHeight;
  return message;
}

function chatNote(text, isBad = false) {
  $("chat-note").textContent = text;
  $("chat-note").classList.toggle("bad", isBad);
}

async function listModels() {
  const response = await ask("/v1/models");
  if (response.status === 401) {
    wantKey(true);
    return;
  }
  if (!response.ok) {
    chatNote(await failure(response), true);
    return;
  }
  const chosen = $("model").value;
  const models = (await response.json()).data;
  $("model").replaceChildren(...models.map((model) => element("option", { value: model.id, textContent: model.id })));
  if (models.some((model) => model.id === chosen)) $("model").value = chosen;
}

async function* events(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return;
    rest += value;
    const lines = rest.split("\n");
    rest = lines.pop();
    for (const line of lines) {
      if (line.startsWith("data: ") && line !== "data: [DONE]") yield JSON.parse(line.slice(6));
    }
  }
}

async function send(text) {
  conversation.push({ role: "user", content: text });
  addMessage("user", text);
  const answer = addMessage("assistant", "");
  running = new AbortController();
  $("send").hidden = true;
  $("stop").hidden = false;
  chatNote("waiting …");
  const begin = performance.now();
  let first = null;
  try {
    const response = await ask("/v1/chat/completions", {
      method: "POST",
      headers: { "content-type": "application/json" },
      body: JSON.stringify({
        model: $("model").value,
        messages: conversation,
        stream: true,
        stream_options: { include_usage: true },
      }),
      signal: running.signal,
    });
    if (response.status === 401) wantKey(true);
    if (!response.ok) throw new Error(await failure(response));
    let usage = null;
    for await (const event of events(response.body)) {
      if (event.error) throw new Error(event.error.message);
      const piece = event.choices?.[0]?.delta?.content;
      if (piece) {
        first ??= performance.now();
        answer.append(piece);
        $("messages").scrollTop = $("messages").scrollHeight;
      }
      usage = event.usage ?? usage;
    }
    const seconds = (performance.now() - (first ?? begin)) / 1000;
    const tokens = usage?.completion_tokens ?? 0;
    const speed = tokens > 1 && seconds > 0 ? `, ${((tokens - 1) / seconds).toFixed(1)} tokens/s` : "";
    const wait = first === null ? "" : `, first after ${Math.round(first - begin)} ms`;
    chatNote(`${tokens} tokens${wait}${speed}`);
  } catch (error) {
    chatNote(error.name === "AbortError" ? "stopped" : error.message, error.name !== "AbortError");
  } finally {
    if (answer.textContent === "") {
      answer.remove();
      conversation.pop();
    } else {
      conversation.push({ role: "assistant", content: answer.textContent });
    }
    running = null;
    $("send").hidden = false;
    $("stop").hidden = true;
  }
}

$("chat-form").addEventListener("submit", (event) => {
  event.preventDefault();
  const text = $("prompt").value.trim();
  if (!text || running) return;
  $("prompt").value = "";
  send(text);
});

$("prompt").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
    event.preventDefault();
    $("chat-form").requestSubmit();
  }
});

$("stop").addEventListener("click", () => running?.abort());
$("clear").addEventListener("click", () => {
  running?.abort();
  conversation = [];
  $("messages").replaceChildren();
  chatNote("");
});

// ---- Server

// Samples of OpenMetrics text by name: [{labels, value}].
function parseMetrics(text) {
  const samples = new Map();
  for (const line of text.split("\n")) {
    const match = /^([a-zA-Z_:][\w:]*)(?:\{(.*)\})? (\S+)/.exec(line);
    if (!match) continue;
    const labels = {};
    for (const [, name, value] of (match[2] ?? "").matchAll(/(\w+)="((?:[^"\\]|\\.)*)"/g)) labels[name] = value;
    if (!samples.has(match[1])) samples.set(match[1], []);
    samples.get(match[1]).push({ labels, value: Number(match[3]) });
  }
  return samples;
}

const sum = (samples, name) => {
  const all = samples.get(name);
  return all ? all.reduce((total, sample) => total + sample.value, 0) : null;
};

function bytes(n) {
  const units = ["B", "KiB", "MiB", "GiB", "TiB"];
  let unit = 0;
  while (n >= 1024 && unit + 1 < units.length) {
    n /= 1024;
    unit += 1;
  }
  return `${unit === 0 ? n : n.toFixed(1)} ${units[unit]}`;
}

const seconds = (s) => (s === null || s === undefined ? "" : s < 1 ? `${Math.round(s * 1000)} ms` : `${s.toFixed(1)} s`);
const count = (n) => (n === null || n === undefined ? "" : n.toLocaleString("en"));

let before = null;
const speeds = [];

function showTiles(samples) {
  const now = performance.now();
  const generated = sum(samples, "edgelm_generation_tokens_total") ?? 0;
  const prompt = sum(samples, "edgelm_prompt_tokens_total") ?? 0;
  let speed = 0;
  if (before && now > before.at) speed = Math.max(0, ((generated - before.generated) * 1000) / (now - before.at));
  before = { at: now, generated };
  speeds.push(speed);
  if (speeds.length > POINTS) speeds.shift();

  const queries = sum(samples, "edgelm_prefix_cache_queries_total");
  const temperatures = (samples.get("edgelm_temperature_celsius") ?? []).map((sample) => sample.value);
  const optional = (value, form) => (value === null || value === undefined ? null : form(value));
  const tiles = [
    ["Tokens per second", speed.toFixed(1)],
    ["Running", count(sum(samples, "edgelm_num_requests_running"))],
    ["Waiting", count(sum(samples, "edgelm_num_requests_waiting"))],
    ["Tokens generated", count(generated)],
    ["Prompt tokens", count(prompt)],
    ["Prompts kept", queries ? `${((100 * sum(samples, "edgelm_prefix_cache_hits_total")) / queries).toFixed(0)} %` : null],
    ["KV in use", `${((sum(samples, "edgelm_kv_cache_usage_perc") ?? 0) * 100).toFixed(0)} %`],
    ["KV bytes", optional(sum(samples, "edgelm_kv_used_bytes"), bytes)],
    ["Memory", optional(sum(samples, "edgelm_process_resident_bytes"), bytes)],
    ["Hottest", temperatures.length ? `${Math.max(...temperatures).toFixed(0)} °C` : null],
    ["Joules per token", optional(sum(samples, "edgelm_energy_per_token_joules"), (j) => j.toFixed(2))],
    ["Up for", optional(sum(samples, "edgelm_process_uptime_seconds"), seconds)],
  ];
  $("tiles").replaceChildren(
    ...tiles
      .filter(([, value]) => value !== null)
      .map(([name, value]) => {
        const tile = element("div", {}, element("dt", { textContent: name }), element("dd", { textContent: value }));
        tile.dataset.name = name;
        return tile;
      }),
  );
}

function showSpeed() {
  const top = Math.max(1, ...speeds);
  const points = speeds.map((speed, i) => `${(300 * i) / (POINTS - 1)},${58 - (56 * speed) / top}`);
  const line = document.createElementNS("http://www.w3.org/2000/svg", "polyline");
  line.setAttribute("points", points.join(" "));
  $("speed").replaceChildren(line);
}

const HISTOGRAMS = [
  ["Time to the first token", "edgelm_time_to_first_token_seconds"],
  ["Between tokens", "edgelm_inter_token_latency_seconds"],
  ["Whole request", "edgelm_e2e_request_latency_seconds"],
];

function quantile(buckets, total, q) {
  const wanted = q * total;
  let [from, seen] = [0, 0];
  for (const { to, upTo } of buckets) {
    if (upTo >= wanted && upTo > seen) {
      return Number.isFinite(to) ? from + ((to - from) * (wanted - seen)) / (upTo - seen) : from;
    }
    [from, seen] = [to, upTo];
  }
  return from;
}

function showHistograms(samples) {
  const drawn = [];
  for (const [title, name] of HISTOGRAMS) {
    const buckets = (samples.get(`${name}_bucket`) ?? []).map(({ labels, value }) => ({
      to: labels.le === "+Inf" ? Infinity : Number(labels.le),
      upTo: value,
    }));
    const total = buckets.at(-1)?.upTo ?? 0;
    const heights = buckets.map(({ upTo }, i) => upTo - (i > 0 ? buckets[i - 1].upTo : 0));
    const top = Math.max(1, ...heights);
    const bars = element("div", { className: "bars" });
    heights.forEach((height, i) => {
      const to = buckets[i].to;
      const bar = element("i", { title: `${Number.isFinite(to) ? `up to ${seconds(to)}` : "more"}: ${height}` });
      bar.style.height = `${(100 * height) / top}%`;
      bars.append(bar);
    });
    const words = total
      ? `${title}: median ${seconds(quantile(buckets, total, 0.5))}, 95 % ${seconds(quantile(buckets, total, 0.95))}, ${count(total)} measured`
      : `${title}: nothing measured yet`;
    drawn.push(element("h3", { textContent: words }), bars);
  }
  $("histograms").replaceChildren(...drawn);
}

function showModels(models) {
  const shown = models.map((model) => {
    const list = element("dl", { className: "kv" });
    for (const [name, value] of Object.entries(model)) {
      if (value === null || value === undefined) continue;
      const text = name.endsWith("_bytes") ? bytes(value) : typeof value === "number" ? count(value) : String(value);
      list.append(element("dt", { textContent: name.replaceAll("_", " ") }), element("dd", { textContent: text }));
    }
    return list;
  });
  $("models").replaceChildren(...shown);
}

function showRequests(running, recent) {
  const row = (request) => {
    const kept = request.cached_tokens ? ` (${count(request.cached_tokens)} kept)` : "";
    const cells = [
      request.state,
      request.route,
      request.client,
      request.prompt_tokens === null ? "" : `${count(request.prompt_tokens)}${kept}`,
      request.prompt_tokens === null ? "" : count(request.generated_tokens),
      seconds(request.queue_s),
      seconds(request.prefill_s),
      seconds(request.decode_s),
      seconds(request.elapsed_s),
    ];
    return element("tr", { title: request.id }, ...cells.map((text) => element("td", { textContent: text })));
  };
  $("requests").replaceChildren(...running.map(row), ...recent.map(row));
}

async function showHealth() {
  const response = await fetch("/health");
  const badge = $("health");
  let text = response.ok ? "ready" : "not ready";
  try {
    const body = await response.json();
    text = response.ok ? (body.status === "ok" ? "ready" : body.status) : body.error.message;
  } catch {
    // The status says enough.
  }
  badge.textContent = text;
  badge.className = `badge ${response.ok && text === "ready" ? "good" : "bad"}`;
}

async function showServer() {
  const [metrics, state] = await Promise.all([ask("/metrics"), ask("/dashboard/state")]);
  const refused = [metrics, state].find((response) => !response.ok);
  if (refused) {
    if (refused.status === 401) wantKey(true);
    $("state-note").textContent = await failure(refused);
    return;
  }
  wantKey(false);
  $("state-note").textContent = "";
  const samples = parseMetrics(await metrics.text());
  const { version, models, running, recent } = await state.json();
  $("version").textContent = version;
  showTiles(samples);
  showSpeed();
  showHistograms(samples);
  showModels(models);
  showRequests(running, recent);
}

async function poll() {
  if (!document.hidden) {
    try {
      await showHealth();
      // Without a key there is nothing to ask for; refusals would only fill the log.
      if ($("key-form").hidden) await showServer();
    } catch {
      $("health").textContent = "no answer";
      $("health").className = "badge bad";
    }
  }
  setTimeout(poll, POLL_MS);
}

listModels().then(poll, poll);
