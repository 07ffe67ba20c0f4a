// Times, durations and phases, as people read them.

export const PHASES = [
  "UNSPECIFIED",
  "QUEUED",
  "WAITING_FOR_RESOURCES",
  "INITIALIZING",
  "RUNNING",
  "SUCCEEDED",
  "FAILED",
  "ABORTED",
  "TIMED_OUT",
  "PAUSED",
  "RECOVERED",
];

const TERMINAL = new Set(["SUCCEEDED", "FAILED", "ABORTED", "TIMED_OUT", "RECOVERED"]);
const SIGNS = {
  QUEUED: "◌",
  WAITING_FOR_RESOURCES: "◌",
  INITIALIZING: "◔",
  RUNNING: "▶",
  SUCCEEDED: "✓",
  FAILED: "✗",
  ABORTED: "■",
  TIMED_OUT: "⧖",
  PAUSED: "‖",
  RECOVERED: "↻",
};

/** A phase by the number or the name that a message has. */
export function phaseOf(value) {
  const name = typeof value === "number" ? PHASES[value] : String(value || "").replace(/^ACTION_PHASE_/, "");
  return name === undefined || name === "" || name === "UNSPECIFIED" ? "QUEUED" : name;
}

export function isTerminal(phase) {
  return TERMINAL.has(phase);
}

export function phaseSign(phase) {
  return SIGNS[phase] || "?";
}

/** The same where there is little room. */
export function shortPhaseWord(phase) {
  return phase === "WAITING_FOR_RESOURCES" ? "waiting" : phaseWord(phase);
}

export function phaseWord(phase) {
  return phase.toLowerCase().replaceAll("_", " ");
}

/** Milliseconds since 1970 of a time as JSON has it; null for none. */
export function millis(text) {
  if (!text) return null;
  const found = Date.parse(text);
  return Number.isNaN(found) ? null : found;
}

export function duration(ms) {
  if (ms === null || !Number.isFinite(ms)) return "";
  if (ms < 0) ms = 0;
  // Most times that are stored have whole seconds.
  if (ms < 1) return "< 1 s";
  if (ms < 1000) return `${Math.round(ms)} ms`;
  const seconds = ms / 1000;
  if (seconds < 10) return `${seconds.toFixed(1)} s`;
  if (seconds < 60) return `${Math.floor(seconds)} s`;
  const minutes = Math.floor(seconds / 60);
  if (minutes < 60) return `${minutes} m ${pad(Math.floor(seconds) % 60)} s`;
  const hours = Math.floor(minutes / 60);
  if (hours < 48) return `${hours} h ${pad(minutes % 60)} m`;
  return `${Math.floor(hours / 24)} d ${pad(hours % 24)} h`;
}

function pad(number) {
  return String(number).padStart(2, "0");
}

const CLOCK = new Intl.DateTimeFormat(undefined, { hour: "2-digit", minute: "2-digit", second: "2-digit", hour12: false });
const DAY = new Intl.DateTimeFormat(undefined, { month: "short", day: "numeric" });
const YEAR = new Intl.DateTimeFormat(undefined, { year: "numeric", month: "short", day: "numeric" });

/** A time in the viewer's zone; with the day unless it is today. */
export function when(ms, now = Date.now()) {
  if (ms === null) return "";
  const at = new Date(ms);
  const today = new Date(now);
  if (at.toDateString() === today.toDateString()) return CLOCK.format(at);
  const day = at.getFullYear() === today.getFullYear() ? DAY : YEAR;
  return `${day.format(at)}, ${CLOCK.format(at)}`;
}

export function iso(ms) {
  return ms === null ? "" : new Date(ms).toISOString();
}

export function ago(ms, now = Date.now()) {
  const seconds = Math.max(0, Math.round((now - ms) / 1000));
  if (seconds < 60) return `${seconds} s ago`;
  if (seconds < 3600) return `${Math.floor(seconds / 60)} m ago`;
  if (seconds < 172800) return `${Math.floor(seconds / 3600)} h ago`;
  return `${Math.floor(seconds / 86400)} d ago`;
}

export function plural(number, noun) {
  return `${number.toLocaleString()} ${noun}${number === 1 ? "" : "s"}`;
}

/** The order of names, with the numbers in them by value: a2 comes before a10. */
export function compareNames(one, other) {
  let at = 0;
  let there = 0;
  while (at < one.length && there < other.length) {
    const isNumber = isDigit(one, at);
    if (isNumber !== isDigit(other, there)) return isNumber ? -1 : 1;
    if (!isNumber) {
      if (one[at] !== other[there]) return one[at] < other[there] ? -1 : 1;
      at += 1;
      there += 1;
      continue;
    }
    const [number, end] = numberAt(one, at);
    const [otherNumber, otherEnd] = numberAt(other, there);
    if (number.length !== otherNumber.length) return number.length - otherNumber.length;
    if (number !== otherNumber) return number < otherNumber ? -1 : 1;
    at = end;
    there = otherEnd;
  }
  const rest = one.length - at - (other.length - there);
  // Names that differ only in zeros before their numbers are in the order of their text.
  return rest || (one < other ? -1 : Number(one > other));
}

function isDigit(text, at) {
  return text[at] >= "0" && text[at] <= "9";
}

/** The number at a place, without zeros before it, and the place after it. */
function numberAt(text, at) {
  while (text[at] === "0") at += 1;
  let end = at;
  while (end < text.length && isDigit(text, end)) end += 1;
  return [text.slice(at, end), end];
}
