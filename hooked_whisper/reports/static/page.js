"use strict";
/* What all pages share: their data, small elements, a player of moments, tables that sort. */
const hw = (() => {
  const data = JSON.parse(document.getElementById("data").textContent);

  /* What is large stands beside the data, as data URIs. */
  function media(number) {
    return document.getElementById(`media-${number}`).textContent;
  }

  /* Elements. Text goes in as text, so that nothing in the data is ever read as HTML. */
  function el(tag, attributes, ...children) {
    const node = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes || {})) {
      if (value === null || value === undefined || value === false) continue;
      if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
      else node.setAttribute(name, value === true ? "" : value);
    }
    node.append(...children.flat(Infinity).filter((each) => each !== null && each !== undefined));
    return node;
  }

  function announce(text) {
    document.getElementById("announce").textContent = text;
  }

  /* Numbers. */
  function bytes(base64) {
    const text = atob(base64);
    const found = new Uint8Array(text.length);
    for (let i = 0; i < text.length; i++) found[i] = text.charCodeAt(i);
    return found;
  }
  function values(encoded) {
    const step = (encoded.high - encoded.low) / 255;
    return Float32Array.from(bytes(encoded.bytes), (byte) => encoded.low + byte * step);
  }
  function seconds(value, digits = 2) {
    return `${value.toFixed(digits)} s`;
  }
  function short(value) {
    if (value === null || value === undefined) return "–";
    const size = Math.abs(value);
    if (size >= 1000) return Math.round(value).toLocaleString("en");
    if (size === 0) return "0";
    return value.toFixed(size >= 100 ? 0 : size >= 10 ? 1 : size >= 1 ? 2 : size >= 0.1 ? 3 : 4);
  }
  function percent(share) {
    if (share === null || share === undefined) return "–";
    const value = 100 * share;
    return `${value === 0 ? "0" : value >= 10 ? value.toFixed(0) : value >= 0.1 ? value.toFixed(1) : value.toFixed(3)} %`;
  }

  /* Cividis, from low (0) to high (1), by eleven of its colours. */
  const STOPS = [
    [0, 34, 78], [18, 53, 112], [59, 73, 108], [87, 93, 109], [112, 113, 115], [138, 134, 120],
    [165, 156, 116], [195, 179, 105], [225, 204, 85], [245, 221, 72], [254, 232, 56],
  ];
  function colour(share) {
    const place = Math.min(Math.max(share, 0), 1) * (STOPS.length - 1);
    const i = Math.min(Math.floor(place), STOPS.length - 2);
    const mixed = STOPS[i].map((low, c) => Math.round(low + (STOPS[i + 1][c] - low) * (place - i)));
    return `rgb(${mixed.join(",")})`;
  }

  /* The player. One sound at a time, from start to end, in seconds of its file. */
  const audio = document.getElementById("audio");
  const addresses = new Map();
  let now = null;
  let frame = 0;

  function address(uri) {
    // A data URI becomes a blob, in which browsers can seek.
    if (!addresses.has(uri)) {
      const [head, body] = uri.split(",", 2);
      const type = head.slice(5).split(";")[0];
      addresses.set(uri, URL.createObjectURL(new Blob([bytes(body)], { type })));
    }
    return addresses.get(uri);
  }

  function stop() {
    const ended = now;
    now = null;
    cancelAnimationFrame(frame);
    audio.pause();
    if (ended) {
      if (ended.button) ended.button.setAttribute("aria-pressed", "false");
      if (ended.onStop) ended.onStop();
    }
  }

  function tick() {
    if (!now) return;
    const at = audio.currentTime;
    if (now.onTime) now.onTime(Math.min(at, now.end));
    if (audio.ended || at >= now.end) stop();
    else frame = requestAnimationFrame(tick);
  }

  /* moment: {src, start, end, from?, button?, onTime?(seconds), onStop?()}; src is a data URI.
     A second click on the button that plays stops it. */
  async function play(moment) {
    const again = now && moment.button && now.button === moment.button && moment.from === undefined;
    stop();
    if (again) return;
    now = moment;
    if (moment.button) moment.button.setAttribute("aria-pressed", "true");
    const src = address(moment.src);
    try {
      if (audio.src !== src) {
        audio.src = src;
        await new Promise((done, failed) => {
          audio.addEventListener("loadedmetadata", done, { once: true });
          audio.addEventListener("error", () => failed(audio.error), { once: true });
        });
      }
      if (now !== moment) return;
      audio.currentTime = moment.from === undefined ? moment.start : moment.from;
      await audio.play();
      frame = requestAnimationFrame(tick);
    } catch (error) {
      // Another moment, or a stop, came before this one could begin.
      if (now !== moment || (error && error.name === "AbortError")) return;
      stop();
      announce("This browser cannot play the sound.");
    }
  }
  // Frames stop in a window that is hidden; the end of a moment must not.
  audio.addEventListener("timeupdate", () => { if (now && document.hidden) tick(); });
  document.addEventListener("keydown", (event) => { if (event.key === "Escape") stop(); });

  /* Sharp lines on every screen: the canvas gets as many points as the screen has. */
  function fit(canvas, height) {
    const ratio = window.devicePixelRatio || 1;
    const width = canvas.clientWidth || 300;
    canvas.style.height = `${height}px`;
    canvas.width = Math.round(width * ratio);
    canvas.height = Math.round(height * ratio);
    const context = canvas.getContext("2d");
    context.setTransform(ratio, 0, 0, ratio, 0, 0);
    return { context, width, height };
  }

  /* Round numbers for an axis from low to high, about `n` of them. */
  function ticks(low, high, n) {
    const rough = (high - low) / Math.max(1, n);
    const power = Math.pow(10, Math.floor(Math.log10(rough)));
    const step = [1, 2, 5, 10].map((each) => each * power).find((each) => each >= rough);
    const found = [];
    for (let i = Math.ceil(low / step - 1e-9); i * step <= high + 1e-9; i++) found.push(i * step);
    return found;
  }

  /* A table whose head sorts. The header cells hold buttons with data-key.
     sorting: {key, descending}; changed(sorting) draws the body anew. */
  function sortable(head, sorting, changed) {
    const show = () => {
      for (const cell of head.querySelectorAll("th")) {
        const button = cell.querySelector("button[data-key]");
        if (!button) continue;
        const mine = button.dataset.key === sorting.key;
        const way = sorting.descending ? "descending" : "ascending";
        cell.setAttribute("aria-sort", mine ? way : "none");
      }
    };
    head.addEventListener("click", (event) => {
      const button = event.target.closest("button[data-key]");
      if (!button) return;
      const key = button.dataset.key;
      const same = sorting.key === key;
      sorting.descending = same ? !sorting.descending : button.dataset.first !== "ascending";
      sorting.key = key;
      show();
      changed(sorting);
    });
    show();
  }

  /* Sorted rows; what is missing comes last either way, equals keep their order. */
  function sorted(rows, value, descending) {
    const missing = (each) => each === null || each === undefined || each === "";
    const compare = (a, b) => {
      const x = value(a);
      const y = value(b);
      if (missing(x) || missing(y)) return missing(x) - missing(y);
      const order = typeof x === "string" ? x.localeCompare(y, "en", { numeric: true }) : x - y;
      return descending ? -order : order;
    };
    return rows.map((row, i) => [row, i]).sort((a, b) => compare(a[0], b[0]) || a[1] - b[1])
      .map((pair) => pair[0]);
  }

  return {
    data, media, el, announce, bytes, values, seconds, short, percent, colour, play, stop, address, fit,
    ticks, sortable, sorted, audio, get playing() { return now; },
  };
})();
