/** What is asked for, and how it is written in the page's address, so that it can be shared. */

/** Nothing asked yet. like, unlike: {image: id} or {file: key}; quotas: number by dataset name. */
export const NOTHING = Object.freeze({
  project: "",
  task: "search",
  texts: [""],
  notTexts: [],
  like: [],
  unlike: [],
  mode: "weighted",
  datasets: [],
  confidence: 50,
  diversity: 0,
  method: "farthest",
  count: 24,
  among: 200,
  quotas: {},
});

const PLAIN = ["project", "task", "mode", "method"];
const NUMBERS = { confidence: [0, 100], diversity: [0, 100], count: [1, 1000], among: [1, 1000] };
const TEXTS = { texts: "text", notTexts: "not" };
const IMAGES = { like: "like", unlike: "unlike" };
const CHOICES = {
  task: ["search", "diverse"],
  mode: ["weighted", "all", "any"],
  method: ["farthest", "kmeans", "dbscan", "random"],
};

/** The address' part after the path. Bytes of files are not in it. */
export function toAddress(state) {
  const written = new URLSearchParams();
  for (const key of [...PLAIN, ...Object.keys(NUMBERS)]) {
    if (state[key] !== NOTHING[key]) written.set(key, state[key]);
  }
  for (const [key, name] of Object.entries(TEXTS)) {
    for (const text of said(state[key])) written.append(name, text);
  }
  for (const [key, name] of Object.entries(IMAGES)) {
    for (const { image } of state[key]) if (image !== undefined) written.append(name, image);
  }
  for (const dataset of state.datasets) written.append("dataset", dataset);
  for (const [name, most] of Object.entries(state.quotas)) written.append("quota", `${most} ${name}`);
  return written.size ? `?${written}` : location.pathname;
}

/** What an address asks for; what it does not say, or says wrongly, is as in NOTHING. */
export function fromAddress(search) {
  const read = new URLSearchParams(search);
  const state = { ...NOTHING };
  for (const key of PLAIN) {
    const value = read.get(key);
    if (value !== null && (CHOICES[key]?.includes(value) ?? true)) state[key] = value;
  }
  for (const [key, [least, most]] of Object.entries(NUMBERS)) {
    state[key] = whole(read.get(key), least, most) ?? NOTHING[key];
  }
  for (const [key, name] of Object.entries(TEXTS)) state[key] = read.getAll(name);
  for (const [key, name] of Object.entries(IMAGES)) {
    state[key] = read.getAll(name).map((image) => ({ image }));
  }
  if (!state.texts.length) state.texts = [""];
  state.datasets = read.getAll("dataset");
  state.quotas = Object.fromEntries(read.getAll("quota").flatMap(quota));
  return state;
}

/** The texts that are more than blanks. */
export const said = (texts) => texts.map((text) => text.trim()).filter(Boolean);

/** Whether there is anything to search for. */
export const asksAnything = (state) => said(state.texts).length + state.like.length > 0;

/** Whether several texts or images are to match, so that it matters how they are combined. */
export const asksSeveral = (state) => said(state.texts).length + state.like.length > 1;

/** A whole number within bounds, or null. */
export function whole(value, least, most) {
  if (value === null || String(value).trim() === "") return null;
  const number = Math.round(Number(value));
  return Number.isFinite(number) ? Math.min(most, Math.max(least, number)) : null;
}

function quota(written) {
  const [number, ...name] = written.split(" ");
  const most = whole(number, 0, 100000);
  return most === null ? [] : [[name.join(" "), most]];
}
