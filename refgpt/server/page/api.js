// The server's interface: one function a path. Failures are errors of one kind, `ServerError`.

/** What the server refused, or that it is gone. `code` and `param` are those of its answer, if it gave one. */
export class ServerError extends Error {
  constructor(message, { status = 0, code = null, param = null } = {}) {
    super(message);
    this.status = status;
    this.code = code;
    this.param = param;
  }
}

const GONE = "The server cannot be reached. Is it still running?";
const CUT = "The connection ended before the text did. What has arrived is kept.";

let key = "";

/** The key that is sent with every request from now on. It is kept in memory only. */
export function useKey(given) {
  key = given;
}

/** The answer to a request, if it is one of success. */
async function ask(path, body, signal) {
  const headers = key ? { Authorization: `Bearer ${key}` } : {};
  const options = { headers, signal };
  if (body !== undefined) {
    options.method = "POST";
    options.body = JSON.stringify(body);
    headers["Content-Type"] = "application/json";
  }
  let response;
  try {
    response = await fetch(path, options);
  } catch (error) {
    throw error.name === "AbortError" ? error : new ServerError(GONE);
  }
  if (!response.ok) throw await refusal(response);
  return response;
}

/** The error that an answer tells of. */
async function refusal(response) {
  const text = await response.text().catch(() => "");
  let told = {};
  try {
    told = JSON.parse(text).error ?? {};
  } catch {
    // Not from this server, but from something between.
  }
  return errorOf(told, response.status);
}

function errorOf(told, status) {
  const message = typeof told.message === "string" ? told.message : `The server answered ${status}.`;
  return new ServerError(message, { status, code: told.code ?? null, param: told.param ?? null });
}

async function json(path, body, signal) {
  const response = await ask(path, body, signal);
  try {
    return await response.json();
  } catch (error) {
    throw error.name === "AbortError" ? error : new ServerError("The server's answer cannot be read.");
  }
}

/** The model that is served: its name, its mask, the masks of its adapters, and what the server allows if it tells. */
export async function model() {
  const { data } = await json("v1/models");
  const [first] = data;
  const adapters = data.filter((one) => one.parent === first.id);
  return {
    name: first.id,
    mask: first.mask ?? "causal",
    adapters: new Map(adapters.map(({ id, mask }) => [id, mask ?? "causal"])),
    context: first.max_model_len ?? null,
    mostTokens: first.max_tokens ?? first.max_model_len ?? null,
    mostLogprobs: first.max_logprobs ?? Infinity,
    mostStops: first.max_stops ?? Infinity,
    inspects: first.inspect ?? true,
  };
}

export const presets = async () => (await json("presets")).presets;
export const inspect = (request, signal) => json("inspect", request, signal);

/** The tokens of a text, whose probabilities are not known yet. */
export async function tokenize(text) {
  const { tokens, token_strs: texts } = await json("tokenize", { prompt: text, parse_special: false });
  return tokens.map((id, i) => ({ id, text: texts[i], logprob: null, top: [] }));
}

/** The data of the events in a stream, one after another, until "[DONE]". */
async function* events(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    let piece;
    try {
      piece = await reader.read();
    } catch (error) {
      throw error.name === "AbortError" ? error : new ServerError(CUT);
    }
    if (piece.done) throw new ServerError(CUT);
    const lines = (rest + piece.value).split(/\r?\n/);
    rest = lines.pop();
    for (const line of lines) {
      if (!line.startsWith("data:")) continue; // a comment that keeps the connection open
      const data = line.slice(5).trim();
      if (data === "[DONE]") return;
      yield JSON.parse(data);
    }
  }
}

/**
 * Complete a prompt, token by token.
 *
 * @param {object} request  of /v1/completions
 * @param {AbortSignal} signal
 * @yields {{tokens: object[], finish: string|null, usage: object|null}}  a token is {id, text, logprob, top}
 */
export async function* complete(request, signal) {
  const response = await ask("v1/completions", { ...request, stream: true }, signal);
  for await (const event of events(response)) {
    if (event.error) throw errorOf(event.error, response.status);
    const [choice] = event.choices ?? [];
    yield {
      tokens: choice ? tokensOf(choice) : [],
      finish: choice?.finish_reason ?? null,
      usage: event.usage ?? null,
    };
  }
}

/** The tokens of one event. `top` lists the likeliest in this place, the best first, with the token itself. */
export function tokensOf({ logprobs }) {
  if (!logprobs) return [];
  return logprobs.tokens.map((text, i) => ({
    id: logprobs.token_ids?.[i] ?? null,
    text,
    logprob: logprobs.token_logprobs?.[i] ?? null,
    top: topOf(logprobs.top_logprobs?.[i] ?? {}, logprobs.top_token_ids?.[i] ?? {}),
  }));
}

/** The likeliest tokens, the best first. (An object of JavaScript puts numbers before all other keys.) */
function topOf(logprobs, ids) {
  const idOf = (text) => (Object.hasOwn(ids, text) ? ids[text] : null);
  const top = Object.entries(logprobs).map(([text, logprob]) => ({ text, logprob, id: idOf(text) }));
  return top.sort((a, b) => b.logprob - a.logprob);
}
