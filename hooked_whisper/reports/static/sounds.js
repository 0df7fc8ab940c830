/* The table of sounds: a row for each, with a button that plays it. */
(() => {
  const { names, rows } = hw.data;
  const body = document.getElementById("rows");
  const head = document.getElementById("head");
  const isText = new Set(names.filter((name) => rows.some((row) => typeof row.known[name] === "string")));

  function cell(name, value) {
    if (name === "name") return hw.el("th", { scope: "row" }, value);
    if (name === "text") return hw.el("td", { class: "text" }, hw.el("div", {}, value || "–"));
    if (typeof value === "boolean") return hw.el("td", {}, value ? "yes" : "no");
    if (typeof value === "number") return hw.el("td", { class: "number" }, hw.short(value));
    return hw.el("td", {}, value === null || value === undefined ? "–" : value);
  }

  function sound(row) {
    if (row.media === null) return hw.el("td", {}, "–");
    const button = hw.el("button", {
      type: "button", class: "play", "aria-pressed": "false",
      "aria-label": `Play ${row.known.name}`,
      onclick: () => hw.play({ src: hw.media(row.media), start: 0, end: row.seconds, button }),
    }, "Play");
    return hw.el("td", {}, button);
  }

  function draw(sorting) {
    const value = (row) => {
      const found = row.known[sorting.key];
      return typeof found === "boolean" ? Number(found) : found;
    };
    body.replaceChildren(...hw.sorted(rows, value, sorting.descending).map((row) => hw.el(
      "tr", {}, names.map((name) => cell(name, row.known[name])),
      hw.el("td", {}, hw.el("img", { src: row.mel, alt: `Spectrogram of ${row.known.name}` })),
      sound(row),
    )));
  }

  head.append(...names.map((name) => hw.el("th", { scope: "col" }, hw.el(
    "button", { type: "button", "data-key": name, "data-first": isText.has(name) ? "ascending" : "descending" },
    name.replaceAll("_", " "),
  ))), hw.el("th", { scope: "col" }, "spectrogram"), hw.el("th", { scope: "col" }, "sound"));
  const sorting = { key: "kind", descending: false };
  hw.sortable(head, sorting, draw);
  draw(sorting);
})();
