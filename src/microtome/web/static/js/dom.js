// Making elements. Text only ever becomes text: nothing here or elsewhere parses markup.

const SVG = "http://www.w3.org/2000/svg";

function build(node, attributes, children) {
  for (const [name, value] of Object.entries(attributes || {})) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (name === "vars") for (const [key, each] of Object.entries(value)) node.style.setProperty(key, each);
    else if (name === "value") node.value = value;
    else node.setAttribute(name, value === true ? "" : String(value));
  }
  append(node, children);
  return node;
}

export function append(node, children) {
  for (const child of children.flat(Infinity)) {
    if (child === null || child === undefined || child === false) continue;
    node.append(child instanceof Node ? child : document.createTextNode(String(child)));
  }
  return node;
}

// An HTML element: h("p", {class: "lede"}, "text", other). `vars` sets CSS properties, `onclick` listens.
export const h = (tag, attributes, ...children) => build(document.createElement(tag), attributes, children);

// An SVG element.
export const s = (tag, attributes, ...children) => build(document.createElementNS(SVG, tag), attributes, children);

export const clear = (node) => { node.replaceChildren(); return node; };

// One tooltip for the page. `show` takes nodes or text and the pointer's place (client coordinates).
const tip = () => document.getElementById("tip");

export function showTip(x, y, ...children) {
  const box = append(clear(tip()), children);
  box.style.left = "0px";
  box.hidden = false;
  const width = box.offsetWidth, height = box.offsetHeight;
  const left = Math.max(6, Math.min(x + 14, document.documentElement.clientWidth - width - 6));
  const above = y - height - 12;
  box.style.left = `${left}px`;
  box.style.top = `${above > 6 ? above : y + 20}px`;
}

export const hideTip = () => { tip().hidden = true; };

// Text with what is between `grave accents` in code type; `plain` makes nodes of the rest.
export const coded = (text, plain = (part) => part) => text.split("`").map((part, n) => (n % 2 ? h("code", {}, part) : plain(part)));

// What went wrong, as the server words it: what, why, and what to do.
export function problem(error) {
  return h("div", { class: "problem", role: "alert" },
    h("strong", {}, error.what || "Something went wrong"),
    error.why || error.message ? h("p", {}, error.why || error.message) : null,
    error.instead ? h("p", { class: "soft" }, "What to do: ", coded(error.instead), ".") : null);
}

export const empty = (text) => h("p", { class: "empty" }, text);
