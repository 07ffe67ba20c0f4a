// Protocol buffers: reads a message by SCHEMA, and writes the few requests that are sent in binary.
import { SCHEMA } from "./schema.js";

const TEXT = new TextDecoder();
const BYTES = new TextEncoder();

/** Decode a message of a type. */
export function decodeMessage(type, bytes) {
  return readMessage(type, bytes, 0, bytes.length);
}

function readMessage(type, bytes, at, end) {
  const fields = SCHEMA[type];
  const message = {};
  const reader = { at };
  while (reader.at < end) {
    const tag = varint(bytes, reader);
    const field = fields[tag >>> 3];
    const wire = tag & 7;
    if (wire === 2) {
      const length = varint(bytes, reader);
      const start = reader.at;
      reader.at += length;
      if (reader.at > end) throw new Error(`${type}: it is cut off`);
      if (field !== undefined) take(message, field, bytes, start, reader.at);
    } else if (wire === 0) {
      const value = varint(bytes, reader);
      if (field !== undefined) message[field[0]] = value;
    } else if (wire === 1) reader.at += 8;
    else if (wire === 5) reader.at += 4;
    else throw new Error(`${type}: wire type ${wire}`);
  }
  return message;
}

function take(message, [name, kind], bytes, start, end) {
  if (kind === "string") message[name] = TEXT.decode(bytes.subarray(start, end));
  else if (kind === "time") message[name] = readTime(bytes, start, end);
  else if (kind === "counts") {
    const [key, value] = twoNumbers(bytes, start, end);
    (message[name] ||= {})[key] = value;
  } else if (kind.startsWith("repeated ")) (message[name] ||= []).push(readMessage(kind.slice(9), bytes, start, end));
  else message[name] = readMessage(kind, bytes, start, end);
}

/** Milliseconds since 1970. */
function readTime(bytes, at, end) {
  const [seconds, nanos] = twoNumbers(bytes, at, end);
  return seconds * 1000 + Math.round(nanos / 1e6);
}

function twoNumbers(bytes, at, end) {
  const found = [0, 0];
  const reader = { at };
  while (reader.at < end) {
    const tag = varint(bytes, reader);
    found[(tag >>> 3) - 1] = varint(bytes, reader);
  }
  return found;
}

function varint(bytes, reader) {
  let value = 0;
  let factor = 1;
  for (let count = 0; count < 10; count += 1) {
    const byte = bytes[reader.at];
    if (byte === undefined) throw new Error("a message is cut off");
    reader.at += 1;
    value += (byte & 127) * factor;
    if (byte < 128) return value;
    factor *= 128;
  }
  throw new Error("a number is too long");
}

/** Encode fields: pairs of a number and a text, or the fields of a message. */
export function encodeFields(fields) {
  const parts = [];
  for (const [number, value] of fields) {
    const body = typeof value === "string" ? BYTES.encode(value) : encodeFields(value);
    parts.push(Uint8Array.of((number << 3) | 2), lengthOf(body.length), body);
  }
  return joined(parts);
}

function lengthOf(length) {
  const bytes = [];
  for (; length > 127; length >>>= 7) bytes.push((length & 127) | 128);
  return Uint8Array.of(...bytes, length);
}

/** Arrays of bytes, one after the other. */
export function joined(parts) {
  const whole = new Uint8Array(parts.reduce((sum, part) => sum + part.length, 0));
  let at = 0;
  for (const part of parts) {
    whole.set(part, at);
    at += part.length;
  }
  return whole;
}
