"use strict";
/* The page of features: a table, and behind each row the moments of one feature. */
(() => {
  const { data, el } = hw;
  const { features, windows, parts } = data;
  const KIND = data.kind;
  const Kind = KIND[0].toUpperCase() + KIND.slice(1);
  const POSITION_S = 0.02;
  const AT_ONCE = 200; // rows
  const isText = data.stack === "decoder";
  const has = (name) => features[name].some((each) => each !== null);
  const effects = new Map(data.effects.map(([w, f, ...texts]) => [`${w}/${f}`, texts]));

  const labelled = new Set(data.labels.map(([name]) => name));
  // Of a manifest's columns only those that are labels; all where none is.
  const isLabel = (name) => name === "speaker" || !labelled.size || labelled.has(name);

  /* The table. */
  const columns = [
    { key: "feature", title: Kind, number: true, first: "ascending", text: (i) => features.name[i] },
    { key: "density", title: "Density", number: true, text: (i) => hw.percent(features.density[i]) },
    { key: "peak", title: "Peak", number: true, text: (i) => hw.short(features.peak[i]) },
    { key: "value", title: "Tells", kind: "tells", first: "ascending", text: tells },
    { key: "auroc", title: "AUROC", number: true, text: (i) => fixed(features.auroc[i], 3) },
    { key: "f1", title: "F1", number: true, text: (i) => fixed(features.f1[i], 2) },
    { key: "words", title: "At its peaks", kind: "words", first: "ascending", text: (i) => features.words[i] || "–" },
    { key: "phones", title: "Phones", kind: "words", first: "ascending", text: (i) => features.phones[i] || "–" },
    { key: "changed", title: "Words changed", number: true, text: changed },
  ].filter((each) => each.key === "changed" ? has("changed_ablated") : has(each.key));

  function fixed(value, digits) {
    return value === null ? "–" : value.toFixed(digits);
  }
  function tells(i) {
    return features.value[i] === null ? "–" : `${features.label[i]}: ${features.value[i].trim()}`;
  }
  function changed(i) {
    if (features.changed_ablated[i] === null) return "–";
    return `${features.changed_ablated[i]} / ${features.changed_amplified[i]}`;
  }
  function sortValue(key, i) {
    if (key !== "changed") return features[key][i];
    const ablated = features.changed_ablated[i];
    return ablated === null ? null : ablated + features.changed_amplified[i];
  }

  const body = document.getElementById("rows");
  const head = document.getElementById("head");
  const search = document.getElementById("search");
  const more = document.getElementById("more");
  const panes = document.getElementById("panes");
  const detail = document.getElementById("detail");
  const all = features.feature.map((_, i) => i);
  const haystack = all.map((i) =>
    [features.label[i], features.value[i], features.words[i], features.phones[i]].filter(Boolean).join(" ").toLowerCase());
  const sorting = { key: has("auroc") ? "auroc" : "peak", descending: true };
  let order = [];
  let shown = 0;
  let open = null;

  for (const each of columns) {
    const button = el("button", { type: "button", "data-key": each.key, "data-first": each.first }, each.title);
    head.append(el("th", { role: "columnheader", scope: "col", class: each.number ? "number" : null }, button));
  }

  function matches(i, terms) {
    return terms.every((term) =>
      /^[\d.]+$/.test(term) ? features.name[i].startsWith(term) : haystack[i].includes(term));
  }

  function row(i) {
    const cells = columns.map((each, place) => {
      const text = each.text(i);
      if (place > 0) return el("td", { role: "cell", "data-title": each.title, class: each.number ? "number" : each.kind }, text);
      const label = `${Kind} ${text}: show its moments`;
      return el("td", { role: "cell", class: "number" }, el("button", { type: "button", "aria-label": label }, text));
    });
    const found = el("tr", { role: "row", "data-i": i, class: features.peak[i] === null ? "never" : null }, cells);
    if (i === open) found.setAttribute("aria-current", "true");
    return found;
  }

  function showMore() {
    body.append(...order.slice(shown, shown + AT_ONCE).map(row));
    shown = Math.min(order.length, shown + AT_ONCE);
    more.hidden = shown >= order.length;
    more.textContent = `Show ${Math.min(AT_ONCE, order.length - shown)} more of ${order.length - shown}`;
  }

  function list() {
    const terms = search.value.toLowerCase().split(/\s+/).filter(Boolean);
    const found = all.filter((i) => matches(i, terms));
    order = hw.sorted(found, (i) => sortValue(sorting.key, i), sorting.descending);
    document.getElementById("count").textContent = `${order.length} of ${all.length}`;
    body.replaceChildren();
    shown = 0;
    showMore();
    if (!order.length) {
      body.append(el("tr", {}, el("td", { colspan: columns.length, class: "soft" }, "Nothing is found.")));
    }
  }

  /* The moments of one feature. */
  function clipOf(i, list) {
    const clip = Object.fromEntries(list.map((each, place) => [data.clip_fields[place], each]));
    const range = data.ranges[i];
    return {
      ...clip,
      window: windows[clip.window], part: clip.part < 0 ? null : parts[clip.part], range,
      effect: effects.get(`${clip.window}/${features.feature[i]}`),
      curve: hw.values({ low: range[0], high: range[1], bytes: clip.curve }),
    };
  }

  const drawings = new Set(); // what is drawn again when the window changes its width

  function show(i, { focus = false, scroll = false } = {}) {
    hw.stop();
    drawings.clear();
    open = i;
    for (const each of body.querySelectorAll("tr[aria-current]")) each.removeAttribute("aria-current");
    const mine = body.querySelector(`tr[data-i="${i}"]`);
    if (mine) mine.setAttribute("aria-current", "true");
    if (mine && scroll) mine.scrollIntoView({ block: "nearest" });
    panes.classList.add("open");
    const name = `${Kind} ${features.name[i]}`;
    const clips = data.clips[i].map((each) => clipOf(i, each));
    const top = clips.filter((each) => each.low === undefined);
    const rest = clips.filter((each) => each.low !== undefined);
    const heading = el("h2", { tabindex: "-1" }, name);
    detail.replaceChildren(
      el("div", { class: "head" }, heading,
        el("button", { type: "button", class: "back", onclick: back }, "Back to the table"),
        step(i, -1, "Previous"), step(i, 1, "Next")),
      facts(i),
    );
    if (!clips.length) {
      detail.append(el("p", { class: "note" }, `This ${KIND} is never active in these recordings.`));
    } else {
      detail.append(histogram(i, clips));
      if (top.length) {
        detail.append(el("h3", {}, "Where it is most active"), el("div", { class: "clips" }, top.map(card)));
      }
      if (rest.length) {
        detail.append(el("h3", {}, "Across its range"), el("div", { class: "clips" }, rest.map(card)));
      }
    }
    for (const draw of drawings) draw();
    try {
      history.replaceState(null, "", `#${KIND}-${features.name[i]}`);
    } catch (error) { /* some browsers forbid it for files */ }
    if (focus) {
      if (window.innerWidth < 1000) window.scrollTo(0, 0);
      heading.focus({ preventScroll: true });
    } else hw.announce(`${name} is shown.`);
  }

  function back() {
    hw.stop();
    panes.classList.remove("open");
    const mine = body.querySelector(`tr[data-i="${open}"] button`);
    if (mine) mine.focus();
  }

  function step(i, by, title) {
    const next = order[order.indexOf(i) + by];
    const name = next === undefined ? "" : ` ${KIND} in the table, ${features.name[next]}`;
    return el("button", {
      type: "button", disabled: next === undefined || order.indexOf(i) < 0, "aria-label": title + name,
      onclick: () => show(next, { focus: true, scroll: true }),
    }, title);
  }

  function facts(i) {
    const pairs = [
      ["Density", `${hw.percent(features.density[i])} of ${isText ? "tokens" : "positions"}`],
      ["Peak", hw.short(features.peak[i])],
    ];
    for (const [rank, [label, auroc, bits, f1]] of (data.tells[i] || []).entries()) {
      const [name, value] = data.labels[label];
      pairs.push([rank ? "" : "Tells", `${name}: ${value.trim()} (AUROC ${auroc.toFixed(3)}, F1 ${f1.toFixed(2)}, ${hw.short(bits)} bits)`]);
    }
    return el("dl", { class: "facts" }, pairs.map(([term, text]) => [el("dt", {}, term), el("dd", {}, text)]));
  }

  /* How often it has which value: bars on a logarithmic scale. */
  function histogram(i, clips) {
    const [low, high, ...counts] = data.ranges[i];
    const total = counts.reduce((a, b) => a + b, 0);
    const label = `Histogram of ${total} values from ${hw.short(low)} to ${hw.short(high)}`;
    const canvas = el("canvas", { class: "range", role: "img", "aria-label": label });
    drawings.add(() => {
      const { context: c, width, height } = hw.fit(canvas, 74);
      const floor = height - 18;
      const most = Math.log1p(Math.max(...counts));
      c.clearRect(0, 0, width, height);
      c.fillStyle = "#6f8fae";
      counts.forEach((n, bin) => {
        const tall = n ? Math.max(1.5, ((floor - 6) * Math.log1p(n)) / most) : 0;
        c.fillRect((bin * width) / counts.length + 0.5, floor - tall, width / counts.length - 1, tall);
      });
      c.fillStyle = "#1a1a1a";
      c.fillRect(0, floor, width, 1);
      for (const each of clips) { // where the moments below lie
        const x = ((each.value - low) / (high - low || 1)) * (width - 2) + 1;
        c.fillRect(x - 1, floor, 2, 5);
      }
      c.font = "12px system-ui, sans-serif";
      c.textBaseline = "bottom";
      c.fillStyle = "#555";
      c.textAlign = "left";
      c.fillText(hw.short(low), 0, height);
      c.textAlign = "center";
      c.fillText(KIND === "neuron" ? "all values, log count" : "values where it is active, log count", width / 2, height);
      c.textAlign = "right";
      c.fillText(hw.short(high), width, height);
    });
    return canvas;
  }

  function card(clip) {
    const at = isText ? `token ${clip.position}` : hw.seconds(clip.window.start + (clip.position + 0.5) * POSITION_S);
    const labels = Object.entries(clip.window.labels).filter(([name]) => isLabel(name)).map(([name, value]) => `${name} ${value}`);
    const about = [`${hw.short(clip.value)} at ${at}`, ...labels].join(" · ");
    const heading = clip.low === undefined ? null : el("p", { class: "about" },
      `${hw.short(clip.low)} to ${hw.short(clip.high)}: ${hw.percent(clip.share)} of its values`);
    return el("article", { class: "clip", "aria-label": `${clip.window.name}, ${at}` },
      heading,
      el("h4", {}, clip.window.name),
      el("p", { class: "about" }, about),
      player(clip, at),
      isText ? tokens(clip) : null,
      isText ? null : said(clip),
      clip.effect ? effect(clip.effect) : null);
  }

  /* Spectrogram, words, activation, playhead. */
  const images = new Map();
  function image(part, ready) {
    if (!images.has(part)) {
      const found = new Image();
      found.src = hw.media(part.mel);
      images.set(part, found);
    }
    const found = images.get(part);
    if (!found.complete) found.addEventListener("load", ready, { once: true });
    return found;
  }

  function player(clip, at) {
    const { part, start, end } = clip;
    if (!part) {
      return el("p", { class: "note" }, "The sound of this moment is not in this file.", isText ? null : picture(clip, at));
    }
    const span = `${(clip.window.start + start).toFixed(2)} to ${hw.seconds(clip.window.start + end)}`;
    const button = el("button", {
      type: "button", class: "play", "aria-pressed": "false",
      "aria-label": `Play ${span} of ${clip.window.name}`,
    }, "Play");
    const canvas = picture(clip, at);
    const begin = (from) => hw.play({
      src: hw.media(part.audio), start: start - part.start, end: end - part.start,
      from: from === undefined ? undefined : from - part.start, button,
      onTime: (time) => canvas.draw(time + part.start),
      onStop: () => canvas.draw(),
    });
    button.addEventListener("click", () => begin());
    canvas.addEventListener("click", (event) => {
      const box = canvas.getBoundingClientRect();
      begin(start + ((event.clientX - box.left) / box.width) * (end - start));
    });
    return [canvas, el("div", { class: "controls" }, button, el("span", { class: "soft" }, span))];
  }

  function picture(clip, at) {
    const what = isText ? "Mel spectrogram" : `Mel spectrogram and activation over time, ${hw.short(clip.value)} at ${at}`;
    const canvas = el("canvas", { class: "time", role: "img", "aria-label": what });
    canvas.draw = (playhead) => draw(canvas, clip, playhead);
    drawings.add(canvas.draw);
    return canvas;
  }

  function draw(canvas, clip, playhead) {
    const melTall = clip.part ? 88 : 0;
    const rows = [clip.window.words, clip.window.phones].filter((each) => each.length);
    const wordsTall = 18 * rows.length || 4;
    const curveTall = isText ? 0 : 62;
    const { context: c, width, height } = hw.fit(canvas, melTall + wordsTall + curveTall + 16);
    const { start, end } = clip;
    const x = (time) => ((time - start) / (end - start)) * width;
    c.clearRect(0, 0, width, height);
    c.font = "12px system-ui, sans-serif";
    if (clip.part) {
      const picture = image(clip.part, () => canvas.draw(playhead));
      if (picture.complete && picture.naturalWidth) {
        const scale = picture.naturalWidth / (clip.part.end - clip.part.start);
        const from = Math.max(0, (start - clip.part.start) * scale);
        const wide = Math.min(picture.naturalWidth - from, (end - start) * scale);
        c.imageSmoothingEnabled = true;
        c.drawImage(picture, from, 0, wide, picture.naturalHeight, 0, 0, width, melTall);
      }
    }
    c.textBaseline = "middle";
    c.textAlign = "center";
    rows.forEach((row, number) => { // the words under the spectrogram, and their phones
      const top = melTall + 18 * number;
      for (const [a, b, said] of row) {
        const left = Math.max(0, x(a));
        const right = Math.min(width, x(b));
        if (right - left < 4) continue;
        c.fillStyle = "#e3edf6";
        c.fillRect(left + 0.5, top + 2, right - left - 1, 14);
        c.fillStyle = "#1a1a1a";
        if (c.measureText(said).width <= right - left) c.fillText(said, (left + right) / 2, top + 9.5);
      }
    });
    const floor = melTall + wordsTall + curveTall;
    if (!isText) curve(c, clip, x, melTall + wordsTall, floor, width);
    c.fillStyle = "#8a8a8a";
    c.fillRect(0, floor, width, 1);
    c.fillStyle = "#555";
    c.textBaseline = "bottom";
    const offset = clip.window.start;
    const count = Math.max(2, Math.floor(width / 90));
    for (const tick of hw.ticks(start + offset, end + offset, count)) {
      const place = x(tick - offset);
      c.fillRect(place, floor, 1, 3);
      c.textAlign = place < 18 ? "left" : place > width - 18 ? "right" : "center";
      c.fillText(`${+tick.toFixed(2)} s`, Math.min(Math.max(place, 0), width), height);
    }
    if (playhead !== undefined) {
      c.fillStyle = "#fff";
      c.fillRect(x(playhead) - 2, 0, 4, floor);
      c.fillStyle = "#d55e00";
      c.fillRect(x(playhead) - 1, 0, 2, floor);
    }
    canvas.dataset.playhead = playhead === undefined ? "" : playhead.toFixed(3);
  }

  function curve(c, clip, x, top, floor, width) {
    const [low, high] = clip.range;
    const y = (value) => floor - 1 - ((value - low) / (high - low || 1)) * (floor - top - 20);
    const zero = y(Math.max(0, low));
    c.beginPath();
    c.moveTo(x(clip.first * POSITION_S), zero);
    clip.curve.forEach((value, i) => { // a position's value holds for its 20 ms
      c.lineTo(x((clip.first + i) * POSITION_S), y(value));
      c.lineTo(x((clip.first + i + 1) * POSITION_S), y(value));
    });
    c.lineTo(x((clip.first + clip.curve.length) * POSITION_S), zero);
    c.fillStyle = "#b9cfe2";
    c.fill();
    c.strokeStyle = "#00457c";
    c.lineWidth = 1.25;
    c.stroke();
    const at = x((clip.position + 0.5) * POSITION_S);
    c.fillStyle = "#00457c";
    c.beginPath();
    c.arc(at, y(clip.value), 3, 0, 7);
    c.fill();
    c.fillStyle = "#1a1a1a";
    c.textBaseline = "bottom";
    c.textAlign = at < 20 ? "left" : at > width - 20 ? "right" : "center";
    c.lineJoin = "round"; // white around the number, which may stand on the curve
    c.lineWidth = 3;
    c.strokeStyle = "rgba(255, 255, 255, 0.9)";
    const place = [hw.short(clip.value), Math.min(Math.max(at, 0), width), y(clip.value) - 4];
    c.strokeText(...place);
    c.fillText(...place);
  }

  /* Texts. */
  function said(clip) {
    const middle = (clip.position + 0.5) * POSITION_S;
    const { text, written, words } = clip.window;
    let shown = text;
    if (words.length) {
      shown = words.map(([a, b, word], i) => [i ? " " : "", a <= middle && middle < b ? el("mark", {}, word) : word]);
    }
    if (shown !== null && shown !== "") return el("p", { class: "said" }, "“", shown, "”");
    if (written) return el("p", { class: "said" }, "“", written, "” ", el("span", { class: "soft" }, "(the model's transcript)"));
    return el("p", { class: "said soft" }, text === "" || written === "" ? "(no speech)" : "(the text is not known)");
  }

  function tokens(clip) {
    const [low, high] = clip.range; // low is 0 at most
    const items = clip.window.tokens.map((token, i) => {
      const value = clip.curve[i];
      const share = high > 0 ? Math.max(0, value) / high : 0;
      // At most 0.6, on which dark letters are read well.
      const style = `background: rgba(0, 69, 124, ${(0.6 * share).toFixed(3)})`;
      const mine = i + clip.first === clip.position;
      const shown = Math.abs(value) < (high - low) / 255 ? 0 : value; // a byte's precision
      return el("li", { style, "aria-current": mine ? "true" : null },
        (token.trim() || token).replace(/\n/g, "⏎"), el("small", {}, hw.short(mine ? clip.value : shown)));
    });
    return el("ol", { class: "tokens", "aria-label": "Tokens and how active it is at each" }, items);
  }

  function effect([plain, ablated, amplified]) {
    const line = (term, text) => [el("dt", {}, term), el("dd", {}, text === plain ? [quoted(text), " ", el("span", { class: "soft" }, "(the same)")] : difference(plain, text))];
    return el("dl", { class: "effects" },
      el("dt", {}, "The model writes"), el("dd", {}, quoted(plain)),
      line("Ablated", ablated), line(`Amplified ×${data.amplify}`, amplified));
  }
  function quoted(text) {
    return text ? `“${text}”` : "(nothing)";
  }

  /* Two texts, word by word: what is lost is struck out, what is new is underlined. */
  function difference(before, after) {
    const a = before.split(/\s+/).filter(Boolean);
    const b = after.split(/\s+/).filter(Boolean);
    const common = Array.from({ length: a.length + 1 }, () => new Uint16Array(b.length + 1));
    for (let i = a.length - 1; i >= 0; i--) {
      for (let j = b.length - 1; j >= 0; j--) {
        common[i][j] = a[i] === b[j] ? common[i + 1][j + 1] + 1 : Math.max(common[i + 1][j], common[i][j + 1]);
      }
    }
    const found = [];
    let i = 0;
    let j = 0;
    while (i < a.length || j < b.length) {
      if (i < a.length && j < b.length && a[i] === b[j]) { found.push(a[i++]); j++; }
      else if (i < a.length && (j >= b.length || common[i + 1][j] >= common[i][j + 1])) found.push(el("del", {}, a[i++]));
      else found.push(el("ins", {}, b[j++]));
    }
    return ["“", found.flatMap((each, place) => (place ? [" ", each] : [each])), "”"];
  }

  /* What the user does. */
  hw.sortable(head, sorting, list);
  search.addEventListener("input", list);
  more.addEventListener("click", () => {
    const first = order[shown];
    showMore();
    const next = body.querySelector(`tr[data-i="${first}"] button`);
    if (next) next.focus();
  });
  body.addEventListener("click", (event) => {
    const mine = event.target.closest("tr[data-i]");
    if (mine) show(Number(mine.dataset.i), { focus: window.innerWidth < 1000 });
  });
  body.addEventListener("keydown", (event) => {
    const by = { ArrowDown: 1, ArrowUp: -1 }[event.key];
    const mine = event.target.closest("tr[data-i]");
    if (!by || !mine) return;
    const next = by > 0 ? mine.nextElementSibling : mine.previousElementSibling;
    if (!next) return;
    event.preventDefault();
    next.querySelector("button").focus();
  });
  new ResizeObserver(() => { for (const draw of drawings) draw(); }).observe(detail);

  function fromAddress() {
    const [kind, name] = decodeURIComponent(location.hash.slice(1)).split(/-(.*)/);
    const i = kind === KIND ? features.name.indexOf(name) : -1;
    if (i >= 0 && i !== open) show(i, { scroll: true });
    return i >= 0;
  }
  window.addEventListener("hashchange", fromAddress);
  list();
  if (!fromAddress() && window.innerWidth >= 1000 && order.length) show(order[0]);
  if (window.innerWidth < 1000 && !location.hash) panes.classList.remove("open");
})();
