"use strict";
// Without this script the page is whole, in the order in which it was written.

for (const box of document.querySelectorAll("[data-controls]")) {
  const list = document.getElementById(box.dataset.controls);
  const items = [...list.querySelectorAll("[data-tags]")];
  const blocks = [...list.querySelectorAll("[data-keys]")];
  const frames = [...list.querySelectorAll("[data-parts]")];
  const columns = [...list.querySelectorAll("[data-model]")];
  const search = box.querySelector("input"), count = box.querySelector("output");
  const plain = (text) => text.normalize("NFKC").toLowerCase().replace(/\s+/g, " ");
  const texts = new Map();
  const textOf = (item) => {
    if (!texts.has(item)) texts.set(item, plain(`${item.dataset.words ?? ""} ${item.textContent}`));
    return texts.get(item);
  };
  const empty = (block) => [...block.querySelectorAll("[data-tags]")].every((item) => item.hidden);

  const narrow = () => {
    const wanted = [...box.querySelectorAll("[data-tag]")].map((s) => s.value).filter(Boolean);
    const words = plain(search.value).trim();
    for (const item of items) {
      const tags = item.dataset.tags.split(" ");
      const found = wanted.every((tag) => tags.includes(tag)) && (!words || textOf(item).includes(words));
      item.hidden = !found;
    }
    for (const block of [...blocks, ...frames]) if (!items.includes(block)) block.hidden = empty(block);
    const model = box.querySelector("[data-column]")?.value;
    for (const part of columns) part.hidden = Boolean(model) && part.dataset.model !== model;
    const shown = items.filter((item) => !item.hidden).length;
    count.textContent = shown === items.length ? "" : `${shown} of ${items.length}`;
  };
  const arrange = () => {
    const by = box.querySelector("[data-order]")?.value;
    if (by === undefined) return;
    const key = (block) => Number(block.dataset.keys.split(" ")[Number(by)]);
    const order = by === "" ? blocks : [...blocks].sort((a, b) => key(b) - key(a));
    for (const parent of new Set(blocks.map((block) => block.parentNode))) {
      parent.prepend(...order.filter((block) => block.parentNode === parent));
    }
  };
  const refresh = () => { narrow(); arrange(); };
  box.addEventListener("input", refresh);
  box.hidden = false;
  // A browser may keep the choices of an earlier visit.
  refresh();
}

for (const table of document.querySelectorAll("table[data-sorts]")) {
  const body = table.tBodies[0], rows = [...body.rows], heads = [...table.tHead.rows[0].cells];
  heads.forEach((head, i) => {
    const numbers = rows.some((row) => "value" in row.cells[i].dataset);
    const key = (row) => {
      const cell = row.cells[i];
      if (!numbers) return cell.textContent.trim();
      return "value" in cell.dataset ? Number(cell.dataset.value) : NaN;
    };
    const compare = (a, b) => numbers ? a - b : a.localeCompare(b, undefined, { numeric: true });
    const turns = numbers ? ["descending", "ascending", null] : ["ascending", "descending", null];
    const button = document.createElement("button");
    button.type = "button";
    button.append(...head.childNodes);
    head.append(button);
    button.addEventListener("click", () => {
      const next = turns[(turns.indexOf(head.ariaSort) + 1) % turns.length];
      for (const other of heads) other.ariaSort = null;
      head.ariaSort = next;
      const sign = next === "descending" ? -1 : 1;
      // What was not measured stays at the end in either direction.
      const sorted = (a, b) => Number.isNaN(key(a)) - Number.isNaN(key(b)) || sign * compare(key(a), key(b));
      body.append(...(next ? [...rows].sort(sorted) : rows));
    });
  });
}

// Paper cannot be opened: it shows what is chosen here, with every answer of it unfolded.
let opened = [];
addEventListener("beforeprint", () => {
  opened = [...document.querySelectorAll("details.case:not([open]), details.plain:not([open])")];
  for (const details of opened) details.open = true;
});
addEventListener("afterprint", () => { for (const details of opened) details.open = false; });
