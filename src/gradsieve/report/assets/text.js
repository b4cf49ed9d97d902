// Readable text of rows: Markdown and code are laid out, in elements that contain text nodes only.
// Data never becomes a link, an image, or any other active element.

const FENCE = /^\s{0,3}(`{3,}|~{3,})\s*([\w+#.-]*)\s*$/, HEADING = /^#{1,6}\s+\S/, TABLE = /^\s*\|.*\|\s*$/;
const ITEM = /^(\s*)([-*+]|\d{1,3}[.)])\s+(.*)$/, QUOTE = /^\s{0,3}>\s?/;

// Text with the search terms marked.
function marked(text, words) {
  if (!words.length) return [text];
  const pattern = words.map((word) => word.replace(/[.*+?^$()|{}[\]\\]/g, "\\$&")).join("|");
  return text.split(new RegExp(`(${pattern})`, "giu")).map((part, place) => (place % 2 ? element("mark", {}, part) : part));
}

function inline(text, words) {
  return text.split(/(`[^`\n]+`|\*\*[^*\n]+\*\*)/).flatMap((part, place) => {
    if (place % 2 === 0) return marked(part, words);
    return part[0] === "`" ? element("span", { class: "code" }, ...marked(part.slice(1, -1), words)) : element("b", {}, ...marked(part.slice(2, -2), words));
  });
}

// The consecutive lines from an index on that pass a test.
function run(lines, start, holds) {
  let end = start;
  while (end < lines.length && holds(lines[end])) end++;
  return lines.slice(start, end);
}

function readable(text, words) {
  const lines = text.split(/\r?\n/), made = [], plain = [];
  const box = (kind, ...children) => made.push(element("div", { class: kind, dir: "auto" }, ...children));
  const paragraph = () => {
    if (plain.some((line) => line.trim())) box("plain", ...inline(plain.join("\n").replace(/^\n+|\s+$/g, ""), words));
    plain.length = 0;
  };
  for (let at = 0; at < lines.length; at++) {
    const line = lines[at], fence = FENCE.exec(line), item = ITEM.exec(line);
    const kind = fence ? "fence" : TABLE.test(line) && TABLE.test(lines[at + 1] || "") ? "table" : HEADING.test(line) ? "heading" : item ? "item" : QUOTE.test(line) ? "quote" : "";
    if (!kind) {
      plain.push(line);
      continue;
    }
    paragraph();
    if (kind === "fence") {
      const inside = run(lines, at + 1, (other) => !other.trim().startsWith(fence[1]));
      made.push(element("div", { class: "block code", dir: "ltr" }, ...marked(inside.join("\n"), words)));
      at += inside.length + 1;
    } else if (kind === "table") {
      const rows = run(lines, at, (other) => TABLE.test(other));
      made.push(element("div", { class: "block code", dir: "auto" }, ...marked(rows.join("\n"), words)));
      at += rows.length - 1;
    } else if (kind === "quote") {
      const quoted = run(lines, at, (other) => QUOTE.test(other));
      box("quote", ...inline(quoted.map((other) => other.replace(QUOTE, "")).join("\n"), words));
      at += quoted.length - 1;
    } else if (kind === "item") {
      const depth = Math.min(4, Math.floor(item[1].length / 2));
      box(`item depth-${depth}`, element("span", {}, /\d/.test(item[2]) ? item[2] : "\u2022"), element("span", {}, ...inline(item[3], words)));
    } else box("heading", ...inline(line, words));
  }
  paragraph();
  return made.length ? made : [text];
}

function conversation(turns, more, words) {
  const plain = at("plain").checked;
  const shown = turns.map(([role, text]) =>
    element("div", { class: `turn ${role === "assistant" ? "assistant" : ""}` },
      element("b", {}, role),
      element("div", { class: plain ? "text plain" : "text", dir: "auto", ...(text.length > 1500 ? { tabindex: "0" } : {}) },
        ...(plain ? marked(text, words) : readable(text, words)))));
  if (more) shown.push(small(`Cut here: ${whole.format(more)} more characters; a page holds the first ${whole.format(report.cut)} of a row.`));
  return shown;
}
