/** Images that were dropped, picked or pasted. They stay in this tab: no address holds their bytes. */

const SHRINK_BYTES = 4_000_000;
const SHRUNK_SIDE = 1600; // pixels: more than any model takes

const kept = new Map();
let count = 0;

/** Keep a file; returns its key. */
export function keep(file) {
  const key = `${Date.now()}-${++count}`; // another than those that a reload forgot
  kept.set(key, { file, address: URL.createObjectURL(file) });
  return key;
}

export const isKept = (key) => kept.has(key);
export const nameOf = (key) => kept.get(key).file.name;
export const addressOf = (key) => kept.get(key).address;

/** The file's bytes in base64. */
export async function dataOf(key) {
  const entry = kept.get(key);
  entry.data ??= await base64(await shrunk(entry.file));
  return entry.data;
}

/** A large photo, smaller; as it is where the browser cannot read it. */
async function shrunk(file) {
  if (file.size <= SHRINK_BYTES) return file;
  const bitmap = await createImageBitmap(file).catch(() => null);
  if (!bitmap) return file;
  const scale = Math.min(1, SHRUNK_SIDE / Math.max(bitmap.width, bitmap.height));
  const canvas = new OffscreenCanvas(
    Math.max(1, Math.round(bitmap.width * scale)),
    Math.max(1, Math.round(bitmap.height * scale)),
  );
  const pen = canvas.getContext("2d");
  pen.fillStyle = "white";
  pen.fillRect(0, 0, canvas.width, canvas.height);
  pen.drawImage(bitmap, 0, 0, canvas.width, canvas.height);
  bitmap.close();
  return canvas.convertToBlob({ type: "image/jpeg", quality: 0.92 });
}

async function base64(blob) {
  const bytes = new Uint8Array(await blob.arrayBuffer());
  let text = "";
  for (let at = 0; at < bytes.length; at += 0x8000) {
    text += String.fromCharCode(...bytes.subarray(at, at + 0x8000));
  }
  return btoa(text);
}
