// Elements. Data becomes text only: nothing here parses HTML.

/** An element. Properties are attributes; `class`, `on` and `data` have their own meaning. */
export function h(tag, properties, ...children) {
  return dressed(document.createElement(tag), properties, children);
}

/** The same for SVG. */
export function svg(tag, properties, ...children) {
  return dressed(document.createElementNS("http://www.w3.org/2000/svg", tag), properties, children);
}

function dressed(element, properties, children) {
  for (const [name, value] of Object.entries(properties || {})) {
    if (value === undefined || value === null || value === false) continue;
    if (name === "class") element.setAttribute("class", value);
    else if (name === "on") {
      for (const [event, listener] of Object.entries(value)) element.addEventListener(event, listener);
    } else if (name === "data") Object.assign(element.dataset, value);
    else element.setAttribute(name, value === true ? "" : String(value));
  }
  put(element, children);
  return element;
}

function put(element, children) {
  for (const child of children.flat(Infinity)) {
    if (child === undefined || child === null || child === false) continue;
    element.append(child instanceof Node ? child : String(child));
  }
}

/** Replace what is in an element. */
export function fill(element, ...children) {
  element.replaceChildren();
  put(element, children);
  return element;
}

/** Set a text or an attribute only where it differs: the browser then has nothing to do. */
export function setText(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

export function setAttribute(element, name, value) {
  if (value === null) {
    if (element.hasAttribute(name)) element.removeAttribute(name);
  } else if (element.getAttribute(name) !== value) element.setAttribute(name, value);
}

/** A function that runs `work` once in the next frame, however often it is called. */
export function batched(work) {
  let frame = 0;
  return () => {
    if (frame) return;
    frame = requestAnimationFrame(() => {
      frame = 0;
      work();
    });
  };
}

/** Say something to a screen reader; what comes within a moment is said together. */
export const announce = (() => {
  let texts = [];
  let timer = 0;
  return (text) => {
    texts.push(text);
    if (timer) return;
    timer = setTimeout(() => {
      timer = 0;
      const said = texts.length > 3 ? [`${texts.length} changes`, texts[texts.length - 1]] : texts;
      texts = [];
      document.getElementById("announcer").textContent = said.join(". ");
    }, 1000);
  };
})();

function copyIcon() {
  const rect = (x, y) => svg("rect", { x, y, width: "8", height: "9", rx: "1.5" });
  return svg("svg", { viewBox: "0 0 16 16", width: "14", height: "14", class: "icon", "aria-hidden": "true" }, rect("2.5", "2.5"), rect("5.5", "5"));
}

/** A button that copies a text. */
export function copyButton(text, what) {
  const button = h("button", { class: "copy", type: "button", title: `Copy ${what}`, "aria-label": `Copy ${what}` }, copyIcon());
  button.addEventListener("click", async (event) => {
    event.stopPropagation();
    try {
      await navigator.clipboard.writeText(text);
      fill(button, "✓");
      announce(`Copied ${what}`);
    } catch {
      // Browsers refuse it without TLS: the text can still be selected.
      fill(button, "✗");
    }
    setTimeout(() => fill(button, copyIcon()), 1500);
  });
  return button;
}
