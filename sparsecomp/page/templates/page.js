"use strict";
// Sorts tables by their headings, opens details, filters layers. Works on what is in the page; builds no HTML.
const all = (selector, root = document) => [...root.querySelectorAll(selector)];

const keyOf = (body, column) => {
  const cell = body.rows[0].cells[column];
  return cell.dataset.key === undefined ? cell.textContent.trim() : cell.dataset.key === "" ? NaN : Number(cell.dataset.key);
};

const compare = (a, b) => {
  if (typeof a === "string" || typeof b === "string") return String(a).localeCompare(String(b), undefined, { numeric: true });
  return a - b;
};

function sort(table, column, descending) {
  const bodies = [...table.tBodies].map((body) => [keyOf(body, column), body]);
  const unknown = ([key]) => Number.isNaN(key);  // what was not measured comes last in either order
  bodies.sort((a, b) => unknown(a) - unknown(b) || (unknown(a) ? 0 : compare(a[0], b[0]) * (descending ? -1 : 1)));
  table.append(...bodies.map(([, body]) => body));
}

for (const table of all("table.layers, table.sortable")) {
  const headings = [...table.tHead.rows[0].cells];
  headings.forEach((heading, column) => {
    const button = heading.querySelector("button");
    if (!button) return;
    button.addEventListener("click", () => {
      const before = heading.getAttribute("aria-sort");
      const descending = before ? before === "ascending" : heading.classList.contains("number");
      headings.forEach((other) => other.removeAttribute("aria-sort"));
      heading.setAttribute("aria-sort", descending ? "descending" : "ascending");
      sort(table, column, descending);
    });
  });
}

const setOpen = (toggle, open) => {
  toggle.setAttribute("aria-expanded", String(open));
  document.getElementById(toggle.getAttribute("aria-controls")).hidden = !open;
};
const toggles = all("button.toggle");
for (const toggle of toggles) {
  toggle.addEventListener("click", () => setOpen(toggle, toggle.getAttribute("aria-expanded") !== "true"));
}

const openAll = document.getElementById("open-all");
openAll.addEventListener("click", () => {
  const open = openAll.getAttribute("aria-pressed") !== "true";
  openAll.setAttribute("aria-pressed", String(open));
  openAll.textContent = open ? "Close all details" : "Open all details";
  toggles.forEach((toggle) => setOpen(toggle, open));
});

const filter = document.getElementById("filter");
const status = document.getElementById("status");
filter.addEventListener("input", () => {
  const wanted = filter.value.trim().toLowerCase();
  const bodies = [...document.getElementById("layer-table").tBodies];
  for (const body of bodies) body.hidden = !body.rows[0].textContent.toLowerCase().includes(wanted);
  const shown = bodies.filter((body) => !body.hidden).length;
  status.textContent = wanted ? `${shown} of ${bodies.length} layers` : "";
});

// A link to a layer, from the graph say, opens it.
function openTarget() {
  const target = document.getElementById(location.hash.slice(1));
  const toggle = target && target.querySelector("button.toggle");
  if (!toggle) return;
  target.hidden = false;
  setOpen(toggle, true);
  target.scrollIntoView({ block: "start" });
  toggle.focus({ preventScroll: true });
}
addEventListener("hashchange", openTarget);
openTarget();
