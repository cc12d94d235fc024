/** Requests to the service: errors in one line, and the caller's key where it asks for one. */

import { askForKey, keyHeaders } from "./key.js";

/** A request that did not succeed. status: 0 where nothing answered. seconds: when to ask again. */
export class Failure extends Error {
  constructor(message, { status = 0, retryable = false, seconds = 0 } = {}) {
    super(message);
    this.status = status;
    this.retryable = retryable;
    this.seconds = seconds;
  }
}

/** The JSON that a path answers with; posted to where there is a body. */
export async function ask(path, { parameters, body, signal } = {}) {
  const response = await request(path, parameters, {
    signal,
    ...(body && {
      method: "POST",
      headers: { "Content-Type": "application/json" },
      body: JSON.stringify(body),
    }),
  });
  return response.json();
}

/** A picture of an image, `side` pixels at most; asked for once more where the service is busy. */
export async function askPicture(project, imageId, side, signal) {
  const parameters = { project, image_id: imageId, side };
  try {
    return await (await request("v1/picture", parameters, { signal })).blob();
  } catch (error) {
    if (!error.retryable || signal?.aborted) throw error;
    await new Promise((resolve) => setTimeout(resolve, 1000 * (error.seconds || 1)));
    return (await request("v1/picture", parameters, { signal })).blob();
  }
}

async function request(path, parameters, options) {
  const address = parameters ? `${path}?${new URLSearchParams(parameters)}` : path;
  for (;;) {
    const used = keyHeaders();
    const response = await send(address, { ...options, headers: { ...options.headers, ...used } });
    if (response.ok) return response;
    const failure = await failureOf(response);
    if (response.status !== 401) throw failure;
    const changed = JSON.stringify(used) !== JSON.stringify(keyHeaders());
    if (!changed && !(await askForKey(failure.message))) throw failure;
  }
}

async function send(address, options) {
  try {
    return await fetch(address, options);
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Failure("The service does not answer; is it still running?", { retryable: true });
  }
}

async function failureOf(response) {
  const seconds = Number(response.headers.get("Retry-After")) || 0;
  const told = await response.json().catch(() => null);
  const message = told?.message ?? `The service answered with an error (${response.status}).`;
  const retryable = told?.error?.retryable ?? response.status >= 500;
  return new Failure(message, { status: response.status, retryable, seconds });
}
