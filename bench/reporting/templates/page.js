"use strict";

const each = (selector, act, from = document) => from.querySelectorAll(selector).forEach(act);

// ------------------------------------------------------------------------------------------ theme

const root = document.documentElement;
const theme = document.getElementById("theme");
const prefersDark = matchMedia("(prefers-color-scheme: dark)");
const isDark = () => (root.dataset.theme ?? (prefersDark.matches ? "dark" : "light")) === "dark";
const showTheme = () => theme.setAttribute("aria-pressed", String(isDark()));
theme.addEventListener("click", () => {
  root.dataset.theme = isDark() ? "light" : "dark";
  showTheme();
});
prefersDark.addEventListener("change", showTheme);
showTheme();

// ------------------------------------------------------- the columns of a row that its detail lists

const DASH = "—";
let columns = null; // { names, rows }: parsed when the first row is opened

function fill(list, row) {
  columns ??= JSON.parse(document.getElementById("columns").textContent);
  columns.names.forEach((name, k) => {
    const text = columns.rows[row][k];
    if (text === DASH) return;
    const pair = document.createElement("div");
    for (const [tag, words] of [["dt", name], ["dd", text]]) {
      pair.append(Object.assign(document.createElement(tag), { textContent: words }));
    }
    list.append(pair);
  });
}

// ---------------------------------------------------------- tables with one <tbody> per entry

function sortable(table) {
  const heads = [...table.querySelectorAll("thead th")];
  const bodies = [...table.tBodies];

  const value = (body, column) => {
    const field = body.rows[0].cells[column];
    const order = field.dataset.order;
    if (order === undefined) return field.textContent.trim();
    return order === "" ? null : Number(order);
  };
  const compare = (a, b) => {
    if (typeof a === "number" && typeof b === "number") return a - b;
    return String(a).localeCompare(String(b), "en", { numeric: true });
  };
  const sort = (head) => {
    const column = heads.indexOf(head);
    const down = head.getAttribute("aria-sort") === "ascending";
    const keyed = bodies.map((body) => [body, value(body, column)]);
    keyed.sort(([, a], [, b]) => {
      if (a === null || b === null) return (a === null) - (b === null); // last in both orders
      return down ? compare(b, a) : compare(a, b);
    });
    heads.forEach((other) => other.setAttribute("aria-sort", "none"));
    head.setAttribute("aria-sort", down ? "descending" : "ascending");
    table.append(...keyed.map(([body]) => body));
  };
  heads.forEach((head) => head.querySelector(".sort")?.addEventListener("click", () => sort(head)));

  table.addEventListener("click", (event) => {
    const button = event.target.closest(".more");
    if (!button) return;
    const open = button.getAttribute("aria-expanded") !== "true";
    button.setAttribute("aria-expanded", String(open));
    const detail = document.getElementById(button.getAttribute("aria-controls"));
    detail.hidden = !open;
    const list = detail.querySelector(".columns:empty");
    if (list) fill(list, bodies.indexOf(detail.parentElement));
  });
}

function filterable(form, table) {
  const bodies = [...table.tBodies];
  const rowTexts = new Map(bodies.map((body) => [body, body.rows[0].textContent.toLowerCase()]));
  const text = form.querySelector("#text");
  const flagged = form.querySelector("#flagged");
  const choices = [...form.querySelectorAll("select")];

  const filter = () => {
    const words = text.value.toLowerCase().split(/\s+/).filter(Boolean);
    let shown = 0;
    for (const body of bodies) {
      const fits =
        choices.every(({ value, dataset }) => !value || body.dataset[dataset.by] === value) &&
        (!flagged.checked || "flagged" in body.dataset) &&
        words.every((word) => rowTexts.get(body).includes(word));
      body.hidden = !fits;
      shown += fits;
    }
    form.querySelector("#shown").textContent = `${shown} of ${bodies.length} rows`;
    document.getElementById("none").hidden = shown > 0;
  };
  form.addEventListener("input", filter);
  form.addEventListener("submit", (event) => event.preventDefault());
  form.addEventListener("reset", () => setTimeout(filter)); // the fields are emptied after this event
  filter();
}

each("table.sorted", sortable);
each("form.filters", (form) => filterable(form, document.getElementById("cells")));

// ----------------------------------------------------------------------------------------- charts

function readable(figure) {
  const svg = figure.querySelector("svg");
  const places = JSON.parse(svg.dataset.places);
  const points = JSON.parse(svg.dataset.points);
  const guide = svg.querySelector(".guide");
  const values = [...figure.querySelectorAll("[data-values]")];
  const texts = values.map((field) => JSON.parse(field.dataset.values));
  const labels = [...figure.querySelectorAll(".key button")];
  const groups = [...svg.querySelectorAll("g")].reverse(); // the first line is drawn last
  const [, top, , bottom] = JSON.parse(svg.dataset.frame);
  let at = places.length - 1;

  const show = (k) => {
    at = Math.max(0, Math.min(places.length - 1, k));
    guide.setAttribute("d", `M${places[at]},${top}V${bottom}`);
    figure.querySelector(".at").textContent = `at ${points[at]}`;
    values.forEach((field, line) => (field.textContent = texts[line][at]));
    svg.setAttribute("aria-valuenow", at);
    const lines = labels.map((label, line) => `${label.textContent} ${texts[line][at]}`);
    svg.setAttribute("aria-valuetext", `${points[at]}: ${lines.join("; ")}`);
  };
  const keys = { ArrowLeft: -1, ArrowDown: -1, ArrowRight: 1, ArrowUp: 1 };
  svg.setAttribute("role", "slider");
  svg.setAttribute("tabindex", "0");
  svg.setAttribute("aria-valuemin", "0");
  svg.setAttribute("aria-valuemax", places.length - 1);
  svg.addEventListener("keydown", (event) => {
    const to = { Home: 0, End: places.length - 1 }[event.key] ?? at + keys[event.key];
    if (Number.isNaN(to)) return;
    event.preventDefault();
    show(to);
  });
  svg.addEventListener("pointermove", (event) => {
    const box = svg.getBoundingClientRect();
    const x = ((event.clientX - box.left) / box.width) * svg.viewBox.baseVal.width;
    const distances = places.map((place) => Math.abs(place - x));
    show(distances.indexOf(Math.min(...distances)));
  });
  labels.forEach((label, line) =>
    label.addEventListener("click", () => {
      const on = label.getAttribute("aria-pressed") !== "true";
      label.setAttribute("aria-pressed", String(on));
      groups[line].classList.toggle("on", on);
      figure.classList.toggle("chosen", figure.querySelector("g.on") !== null);
    }),
  );
  show(at);
}

each("figure.chart", readable);
