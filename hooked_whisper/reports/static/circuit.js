"use strict";
/* The page of a circuit: edges that are chosen, heard and listed. */
const circuit = (() => {
  const { data, el } = hw;
  const edges = data.edges;
  const byId = (id) => document.getElementById(id);
  const shapes = new Map();
  for (const shape of document.querySelectorAll(".edge")) shapes.set(Number(shape.dataset.edge), shape);
  const state = { chosen: null, node: "", most: edges.length, at: null };
  const picture = new Image();
  const rows = new Map();

  const visible = () => edges.map((edge, i) => i).filter((i) => isShown(i));
  function isShown(i) {
    const edge = edges[i];
    return i < state.most && (!state.node || edge.sender === state.node || edge.receiver === state.node);
  }
  const range = (moment) => `${moment[0].toFixed(2)}–${moment[1].toFixed(2)} s`;
  function describe(edge) {
    const read = edge.part ? `, read as ${edge.part}` : "";
    const score = data.has_scores ? `; score ${hw.short(edge.score)}` : "";
    const heard = edge.moment ? `; carries ${range(edge.moment)}${edge.traced ? " (traced)" : ""}` : "; no time";
    return `${edge.from} → ${edge.to}${read}${score}${heard}.`;
  }

  function show() {
    byId("shown").textContent = `${visible().length}`;
    for (const [i, shape] of shapes) {
      shape.classList.toggle("hidden", i >= state.most);
      shape.classList.toggle("dim", i < state.most && !isShown(i));
      shape.classList.toggle("chosen", i === state.chosen);
    }
    for (const node of document.querySelectorAll(".node")) {
      node.classList.toggle("chosen", node.dataset.node === state.node);
    }
    for (const [i, row] of rows) row.classList.toggle("chosen", i === state.chosen);
    const reachable = isReachable(state.chosen) ? state.chosen : visible()[0];
    for (const [i, shape] of shapes) shape.setAttribute("tabindex", i === reachable ? "0" : "-1");
    draw();
  }
  const isReachable = (i) => i !== null && isShown(i);

  function choose(i, sounds = true) {
    state.chosen = i;
    const edge = edges[i];
    byId("readout").textContent = describe(edge);
    const again = byId("again");
    again.disabled = !edge.moment;
    show();
    if (sounds && edge.moment) play(edge.moment, again);
    else if (sounds) hw.stop();
  }

  function play([start, end], button) {
    return hw.play({
      src: data.audio, start, end: Math.min(end, data.sound_s), button,
      onTime: (at) => { state.at = at; draw(); },
      onStop: () => { state.at = null; draw(); },
    });
  }

  /* The strip: what is carried, above the spectrogram. */
  const HIGH = { bars: 60, mel: 90 };
  function draw() {
    const canvas = byId("strip");
    const { context, width } = hw.fit(canvas, HIGH.bars + HIGH.mel + 18);
    const x = (seconds) => (seconds / data.sound_s) * width;
    const parts = state.chosen === null ? data.all : edges[state.chosen].times;
    const largest = Math.max(1e-9, ...parts.map((part) => Math.abs(part[2])));
    context.clearRect(0, 0, width, HIGH.bars + HIGH.mel + 18);
    for (const [start, end, part] of parts) {
      const high = (Math.abs(part) / largest) * (HIGH.bars - 4);
      context.fillStyle = part >= 0 ? "#00528c" : "#b3521b";
      context.fillRect(x(start), HIGH.bars - high, Math.max(1, x(end) - x(start) - 1), high);
    }
    if (picture.complete && picture.naturalWidth) context.drawImage(picture, 0, HIGH.bars, width, HIGH.mel);
    context.fillStyle = "#1a1a1a";
    context.font = "12px system-ui, sans-serif";
    for (const tick of hw.ticks(0, data.sound_s, Math.max(2, width / 90))) {
      context.fillRect(x(tick), HIGH.bars + HIGH.mel, 1, 4);
      context.fillText(`${Number(tick.toFixed(3))}`, Math.min(x(tick) + 3, width - 24), HIGH.bars + HIGH.mel + 14);
    }
    context.fillStyle = "rgba(255,255,255,0.75)";
    for (const [start, end] of data.words) {
      for (const edge of [start, end]) context.fillRect(x(edge), HIGH.bars, 1, HIGH.mel);
    }
    if (state.at !== null) {
      context.fillStyle = "#ffea46";
      context.fillRect(x(state.at) - 1, HIGH.bars, 3, HIGH.mel);
      context.fillStyle = "#1a1a1a";
      context.fillRect(x(state.at), 0, 1, HIGH.bars);
    }
    byId("clock").textContent = state.at === null ? "" : hw.seconds(state.at);
    canvas.setAttribute("aria-valuemax", data.sound_s.toFixed(2));
    canvas.setAttribute("aria-valuenow", (state.at || 0).toFixed(2));
    const whose = state.chosen === null ? "all edges into the logits carry" : "the chosen edge carries";
    byId("carried").textContent = parts.length
      ? `Bars: how much of what ${whose} comes from which seconds.` : "No times are known for this edge.";
  }

  /* The table. */
  const sorting = { key: "score", descending: true };
  const value = { from: (e) => e.from, to: (e) => e.to, part: (e) => e.part, score: (e) => e.score,
    start: (e) => (e.moment ? e.moment[0] : null) };
  function list() {
    rows.clear();
    const shown = hw.sorted(visible(), (i) => value[sorting.key](edges[i]), sorting.descending);
    byId("rows").replaceChildren(...shown.map((i) => {
      const edge = edges[i];
      const name = edge.moment ? range(edge.moment) : "–";
      const button = el("button", { type: "button", class: "play", "aria-pressed": "false", disabled: !edge.moment,
        "aria-label": `Play ${name} of ${edge.from} to ${edge.to}` }, name);
      button.addEventListener("click", () => {
        const ends = hw.playing && hw.playing.button === button;
        choose(i, false);
        if (ends) hw.stop(); else play(edge.moment, button);
      });
      const row = el("tr", { class: i === state.chosen ? "chosen" : null },
        el("td", {}, edge.from), el("td", {}, edge.to), el("td", {}, edge.part),
        el("td", { class: "number" }, data.has_scores ? hw.short(edge.score) : "–"),
        el("td", {}, button, edge.traced && edge.moment ? el("span", { class: "soft small" }, " traced") : null));
      rows.set(i, row);
      return row;
    }));
  }

  for (const [i, shape] of shapes) {
    shape.addEventListener("click", () => choose(i));
    shape.addEventListener("keydown", (event) => {
      const order = visible();
      const place = order.indexOf(i);
      const step = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
      let next = null;
      if (step) next = order[Math.min(Math.max(place + step, 0), order.length - 1)];
      if (event.key === "Home") next = order[0];
      if (event.key === "End") next = order[order.length - 1];
      if (next !== null) {
        choose(next, false);
        shapes.get(next).focus();
      } else if (event.key === "Enter" || event.key === " ") choose(i);
      else return;
      event.preventDefault();
    });
  }
  for (const node of document.querySelectorAll(".node")) {
    node.addEventListener("click", () => filter(state.node === node.dataset.node ? "" : node.dataset.node));
  }
  function filter(name) {
    state.node = name;
    byId("node").value = name;
    list();
    show();
  }
  byId("node").addEventListener("change", (event) => filter(event.target.value));
  byId("most").addEventListener("input", (event) => {
    state.most = Number(event.target.value);
    list();
    show();
  });
  byId("play").addEventListener("click", (event) => {
    const ends = hw.playing && hw.playing.button === event.target;
    if (ends) hw.stop(); else play([0, data.sound_s], event.target);
  });
  byId("again").addEventListener("click", (event) => {
    const ends = hw.playing && hw.playing.button === event.target;
    if (ends) hw.stop(); else if (state.chosen !== null) play(edges[state.chosen].moment, event.target);
  });
  const strip = byId("strip");
  strip.addEventListener("click", (event) => {
    play([(event.offsetX / strip.clientWidth) * data.sound_s, data.sound_s], byId("play"));
  });
  strip.addEventListener("keydown", (event) => {
    const step = { ArrowRight: 0.1, ArrowLeft: -0.1 }[event.key];
    if (step) state.at = Math.min(Math.max((state.at || 0) + step, 0), data.sound_s);
    else if (event.key === "Enter" || event.key === " ") play([state.at || 0, data.sound_s], byId("play"));
    else return;
    event.preventDefault();
    draw();
  });
  /* Words above the strip, in as many lines as they need not to overlap. */
  function place() {
    const box = byId("words");
    const width = box.clientWidth;
    box.replaceChildren();
    const ends = [];
    for (const [start, end, word] of data.words) {
      const span = el("span", { style: `left: ${(50 * (start + end)) / data.sound_s}%` }, word);
      box.append(span);
      const middle = (((start + end) / 2) / data.sound_s) * width;
      const half = span.offsetWidth / 2 + 3;
      let lane = ends.findIndex((edge) => edge <= middle - half);
      if (lane < 0) lane = ends.length;
      ends[lane] = middle + half;
      span.style.bottom = `${lane * 1.2}rem`;
    }
    box.style.height = `${Math.max(1, ends.length) * 1.2 + 0.2}rem`;
  }
  place();
  window.addEventListener("resize", place);
  picture.addEventListener("load", draw);
  picture.src = data.mel;
  window.addEventListener("resize", draw);
  hw.sortable(byId("head"), sorting, list);
  list();
  show();
  return { state, choose, edges };
})();
