// Calls of the service, in Connect's protocol: single ones, and streams that come back by themselves.
import { decodeMessage, encodeFields, joined } from "./wire.js";

const TOKEN = "etcd-actions.token";
const HIDDEN_AFTER = 15_000;
const FIRST_DELAY = 500;
const LONGEST_DELAY = 15_000;
const UTF8 = new TextDecoder();
const CODES = { 401: "unauthenticated", 403: "permission_denied", 404: "not_found", 429: "resource_exhausted" };
// Codes that another try does not change.
const FINAL = new Set(["not_found", "permission_denied", "invalid_argument", "unimplemented", "failed_precondition", "data_loss"]);

export class CallError extends Error {
  constructor(code, message) {
    super(message || code);
    this.code = code;
  }

  get isFinal() {
    return FINAL.has(this.code);
  }
}

/** What the service says of itself. */
export const config = { actions: false, token: false, keepalive: 30 };

/** What `etcd-actions report` wrote into the document; null in a page that is served. */
export const snapshot = (() => {
  const element = document.getElementById("etcd-actions-snapshot");
  return element === null ? null : JSON.parse(element.textContent);
})();

/** The time, in milliseconds since 1970: in a report the one at which its data were read. */
export function clock() {
  return snapshot === null ? Date.now() : snapshot.at;
}

export async function loadConfig() {
  if (snapshot !== null) return;
  const response = await fetch("/page/config.json", { cache: "no-store" });
  if (!response.ok) throw new CallError("unavailable", `HTTP ${response.status}`);
  Object.assign(config, await response.json());
}

// -- the token -----------------------------------------------------------------------------------

let asking = null;
let askUser = async () => "";

/** Set the function that asks the user for a token: it takes why, and returns the token. */
export function askWith(ask) {
  askUser = ask;
}

export function forgetToken() {
  sessionStorage.removeItem(TOKEN);
}

export function hasToken() {
  return Boolean(sessionStorage.getItem(TOKEN));
}

async function newToken(refused, why) {
  if (sessionStorage.getItem(TOKEN) !== refused) return;
  asking ||= askUser(why).then((token) => {
    sessionStorage.setItem(TOKEN, token);
    asking = null;
  });
  await asking;
}

function headersWith(token, more) {
  const headers = { ...more };
  if (token) headers.authorization = `Bearer ${token}`;
  return headers;
}

/** Send a request; asks for a token as long as it is refused. */
async function send(path, options) {
  for (;;) {
    if (config.token && !hasToken()) await newToken(sessionStorage.getItem(TOKEN), "");
    const token = sessionStorage.getItem(TOKEN);
    const response = await fetch(path, { ...options, headers: headersWith(token, options.headers), cache: "no-store" });
    if (response.status !== 401) return response;
    const error = await errorOf(response);
    if (options.signal?.aborted) throw error;
    await newToken(token, token ? error.message : "");
  }
}

async function errorOf(response) {
  let text = "";
  try {
    text = await response.text();
    const { code, message } = JSON.parse(text);
    return new CallError(code || "unknown", message);
  } catch {
    return new CallError(CODES[response.status] || "unavailable", text.slice(0, 300) || `HTTP ${response.status}`);
  }
}

// -- calls ---------------------------------------------------------------------------------------

/** Call a method; returns the response's JSON. */
export async function call(method, request, signal) {
  if (snapshot !== null) return fromSnapshot(method, request);
  const response = await send(`/${method}`, {
    method: "POST",
    headers: { "content-type": "application/json", "connect-protocol-version": "1" },
    body: JSON.stringify(request),
    signal,
  });
  if (!response.ok) throw await errorOf(response);
  return response.json();
}

function fromSnapshot(method, request) {
  const name = method.slice(method.lastIndexOf("/") + 1);
  const action = request.actionId?.name || request.actionAttemptId?.actionId?.name || "";
  const attempt = request.attempt ? `:${request.attempt}` : "";
  const found = snapshot.responses[`${name}:${action}${attempt}`] ?? snapshot.responses[`${name}:${action}`];
  if (found === undefined) throw new CallError("not_found", `This report has the details of ${snapshot.detailed.toLocaleString()} actions, and no logs, inputs or outputs.`);
  return found;
}

/** The responses of a method that streams: JSON, or messages of `type` if the request is fields. */
export async function* stream(method, request, { type = null, signal } = {}) {
  if (snapshot !== null) {
    const found = fromSnapshot(method, request);
    for (const each of found) yield type === null ? each : decodeMessage(type, Uint8Array.from(atob(each), (char) => char.charCodeAt(0)));
    return;
  }
  const kind = type === null ? "json" : "proto";
  const body = type === null ? new TextEncoder().encode(JSON.stringify(request)) : encodeFields(request);
  const head = new Uint8Array(5);
  new DataView(head.buffer).setUint32(1, body.length);
  const response = await send(`/${method}`, {
    method: "POST",
    headers: { "content-type": `application/connect+${kind}`, "connect-protocol-version": "1" },
    body: joined([head, body]),
    signal,
  });
  if (!response.ok) throw await errorOf(response);
  for await (const [flags, data] of envelopes(response)) {
    if (flags & 2) {
      const { error } = JSON.parse(UTF8.decode(data) || "{}");
      if (error) throw new CallError(error.code || "unknown", error.message);
      return;
    }
    yield type === null ? JSON.parse(UTF8.decode(data) || "{}") : decodeMessage(type, data);
  }
  throw new CallError("unavailable", "the stream broke off");
}

async function* envelopes(response) {
  let parts = [];
  let size = 0;
  let wanted = 5;
  for await (const chunk of chunks(response)) {
    parts.push(chunk);
    size += chunk.length;
    if (size < wanted) continue;
    let bytes = joined(parts);
    let at = 0;
    wanted = 5;
    while (bytes.length - at >= 5) {
      const length = new DataView(bytes.buffer, bytes.byteOffset + at + 1, 4).getUint32(0);
      if (bytes.length - at < 5 + length) {
        wanted = 5 + length;
        break;
      }
      yield [bytes[at], bytes.subarray(at + 5, at + 5 + length)];
      at += 5 + length;
    }
    bytes = bytes.slice(at);
    parts = [bytes];
    size = bytes.length;
  }
}

async function* chunks(response) {
  const reader = response.body.getReader();
  // A connection that died silently: the service sends something within each keepalive.
  const patience = Math.max(10, config.keepalive * 2.5) * 1000;
  try {
    for (;;) {
      let timer;
      const late = new Promise((_, reject) => {
        timer = setTimeout(() => reject(new CallError("unavailable", "the service is silent")), patience);
      });
      const { done, value } = await Promise.race([reader.read(), late]).finally(() => clearTimeout(timer));
      if (done) return;
      yield value;
    }
  } finally {
    reader.cancel().catch(() => {});
  }
}

/** The lines of one of the page's own streams, as JSON; null for an empty one. */
export async function* lines(path, signal) {
  const response = await send(path, { signal });
  if (!response.ok) throw await errorOf(response);
  const decoder = new TextDecoder();
  let rest = "";
  for await (const chunk of chunks(response)) {
    const found = (rest + decoder.decode(chunk, { stream: true })).split("\n");
    rest = found.pop();
    for (const line of found) yield line === "" ? null : JSON.parse(line);
  }
  throw new CallError("unavailable", "the stream ended");
}

// -- following -----------------------------------------------------------------------------------

/**
 * Follow a stream until `signal`: opens it again after it broke off, waits longer each time, and
 * closes it while the page is hidden, since a browser has few connections.
 *
 * `open(signal)` is an iterator, `each(item)` takes an item, `report(state, error)` gets `connecting`,
 * `live`, `lost`, `ended` or `failed`, and `isDone()` is asked when the stream ends well.
 */
export async function follow({ open, each, report, signal, isDone = () => snapshot !== null }) {
  let delay = FIRST_DELAY;
  let why = null;
  while (!signal.aborted) {
    const attempt = new AbortController();
    const stop = () => attempt.abort();
    signal.addEventListener("abort", stop);
    const unhide = whenHidden(stop);
    report(why === null ? "connecting" : "lost", why);
    try {
      let isFirst = true;
      for await (const item of open(attempt.signal)) {
        if (isFirst) {
          isFirst = false;
          delay = FIRST_DELAY;
          why = null;
          report("live", null);
        }
        each(item);
      }
      if (isDone()) {
        report("ended", null);
        return;
      }
      why = new CallError("unavailable", "the service ended the stream");
    } catch (error) {
      if (signal.aborted) return;
      if (!(error instanceof CallError) && !(error instanceof TypeError) && error.name !== "AbortError") console.error(error);
      if (error instanceof CallError && error.code === "unauthenticated") {
        // A stream is refused in its last message, with the status 200.
        await newToken(sessionStorage.getItem(TOKEN), error.message);
        continue;
      }
      if (error instanceof CallError && error.isFinal) {
        report("failed", error);
        return;
      }
      why = attempt.signal.aborted ? null : error;
    } finally {
      signal.removeEventListener("abort", stop);
      unhide();
      attempt.abort();
    }
    if (document.hidden && why === null) {
      await shown(signal);
      continue;
    }
    report("lost", why);
    await pause(delay * (0.75 + Math.random() / 2), signal);
    delay = Math.min(delay * 2, LONGEST_DELAY);
  }
}

function whenHidden(stop) {
  let timer = 0;
  const changed = () => {
    clearTimeout(timer);
    if (document.hidden) timer = setTimeout(stop, HIDDEN_AFTER);
  };
  document.addEventListener("visibilitychange", changed);
  changed();
  return () => {
    clearTimeout(timer);
    document.removeEventListener("visibilitychange", changed);
  };
}

function shown(signal) {
  return new Promise((resolve) => {
    const changed = () => {
      if (document.hidden && !signal.aborted) return;
      document.removeEventListener("visibilitychange", changed);
      signal.removeEventListener("abort", changed);
      resolve();
    };
    document.addEventListener("visibilitychange", changed);
    signal.addEventListener("abort", changed);
    changed();
  });
}

function pause(ms, signal) {
  return new Promise((resolve) => {
    const done = () => {
      clearTimeout(timer);
      window.removeEventListener("online", done);
      signal.removeEventListener("abort", done);
      resolve();
    };
    const timer = setTimeout(done, ms);
    window.addEventListener("online", done);
    signal.addEventListener("abort", done);
  });
}
