// Long columns of numbers as an answer packs them: base64 of little-endian values.

function bytes(text: string): Uint8Array<ArrayBuffer> {
  const letters = atob(text);
  const all = new Uint8Array(letters.length);
  for (let n = 0; n < letters.length; n += 1) all[n] = letters.charCodeAt(n);
  return all;
}

export const floats = (text: string): Float32Array => new Float32Array(bytes(text).buffer);
export const wholes = (text: string): Int32Array => new Int32Array(bytes(text).buffer);
export const shorts = (text: string): Uint16Array => new Uint16Array(bytes(text).buffer);
export const codes = (text: string): Int8Array => new Int8Array(bytes(text).buffer);
