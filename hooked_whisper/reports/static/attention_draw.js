/* Drawing: the spectrogram with what is looked at, the pattern, the tokens.
   Left of all pictures is the same margin, so that equal times stand below each other. */
(() => {
  const { D, SOUND_END, WINDOW_END, state, axes, isTime, tokenAt, count, end, timeEnd, sizeOf } =
    attention;
  const { clamp, binAt, number, label } = attention;
  const $ = (id) => document.getElementById(id);
  const SOFT = "#555";
  const INK = "#1a1a1a";
  const ACCENT = "#00457c";
  const HEIGHT = { words: 20, mel: 92, strip: 34, gap: 6, axis: 20 };
  const LUT = Array.from({ length: 256 }, (_, i) => hw.colour(i / 255).match(/\d+/g).map(Number));
  const places = {}; // where the pictures lie in their canvases, for the pointer
  const mel = new Image();
  mel.onload = () => attention.draw();
  mel.src = D.mel;

  const margins = (width) => ({ left: width < 500 ? 62 : 96, right: 12 });
  const font = (size = 12, weight = "") => `${weight} ${size}px system-ui, sans-serif`;

  /* A pattern's cells as a picture; a pixel over several cells shows the largest. */
  function cells(axis, pixels) {
    const last = end(axis);
    return Array.from({ length: pixels }, (_, i) => [
      binAt(axis, Math.floor((i / pixels) * last)),
      binAt(axis, Math.max(0, Math.ceil(((i + 1) / pixels) * last) - 1)),
    ]);
  }
  function heat(head, { query, key }, width, height) {
    const picture = new ImageData(width, height);
    const columns = cells(key, width);
    let to = 0;
    for (const [q0, q1] of cells(query, height)) {
      for (const [k0, k1] of columns) {
        let code = 0;
        for (let q = q0; q <= q1; q++) {
          for (let k = k0; k <= k1; k++) code = Math.max(code, head.codes[q * head.nk + k]);
        }
        picture.data.set(LUT[code], to);
        picture.data[to + 3] = 255;
        to += 4;
      }
    }
    return picture;
  }

  /* Text and lines. */
  function cut(context, text, room) {
    if (context.measureText(text).width <= room) return text;
    let n = text.length;
    while (n > 1 && context.measureText(`${text.slice(0, n)}…`).width > room) n--;
    return `${text.slice(0, n)}…`;
  }
  function write(context, text, x, y, align = "left", base = "alphabetic", colour = SOFT) {
    Object.assign(context, { textAlign: align, textBaseline: base, fillStyle: colour });
    context.fillText(text, x, y);
  }
  function twice(context, path, colours = ["#000", "#fff"], widths = [3, 1.2]) {
    // Bright within dark: seen on any ground.
    colours.forEach((colour, i) => {
      Object.assign(context, { strokeStyle: colour, lineWidth: widths[i] });
      context.beginPath();
      path();
      context.stroke();
    });
  }
  function line(context, x0, y0, x1, y1, colours) {
    twice(context, () => { context.moveTo(x0, y0); context.lineTo(x1, y1); }, colours);
  }
  function timeAxis(context, x, y, width, label) {
    context.font = font();
    for (const tick of hw.ticks(0, timeEnd() * D.position_s, Math.max(2, width / 90))) {
      const at = x(tick / D.position_s);
      context.fillStyle = SOFT;
      context.fillRect(at - 0.5, y, 1, 4);
      write(context, String(+tick.toFixed(3)), at, y + 6, "center", "top");
    }
    if (label) write(context, label, x(0), y + 22, "left", "top");
    else write(context, "s", x(0) - 12, y + 6, "right", "top");
  }

  /* The sound: words, spectrogram, and below it what is looked at. */
  function drawSound() {
    const strips = { decoder: [], cross: ["row"], encoder: ["row", "column"] }[state.kind];
    const below = HEIGHT.words + HEIGHT.mel + strips.length * (HEIGHT.strip + HEIGHT.gap);
    const { context, width } = hw.fit($("sound"), below + HEIGHT.axis);
    const { left, right } = margins(width);
    const room = width - left - right;
    const x = (position) => left + (position / timeEnd()) * room;
    places.sound = { left, room };
    context.font = font();
    if (state.all) {
      context.fillStyle = "#e9e9e9";
      context.fillRect(x(SOUND_END), HEIGHT.words, x(WINDOW_END) - x(SOUND_END), HEIGHT.mel);
      const middle = HEIGHT.words + HEIGHT.mel / 2;
      write(context, "padding", x((SOUND_END + WINDOW_END) / 2), middle, "center", "middle");
    }
    const melEnd = x(Math.min(D.sound_s / D.position_s, timeEnd()));
    if (mel.naturalWidth) context.drawImage(mel, left, HEIGHT.words, melEnd - left, HEIGHT.mel);
    write(context, "mel", left - 8, HEIGHT.words + HEIGHT.mel / 2, "right", "middle");
    drawWords(context, x);
    strips.forEach((which, i) => {
      const top = HEIGHT.words + HEIGHT.mel + HEIGHT.gap + i * (HEIGHT.strip + HEIGHT.gap);
      drawStrip(context, which, x, top);
    });
    timeAxis(context, x, below + 1, room);
    if (state.at !== null) {
      const at = x(state.at / D.position_s);
      line(context, at, HEIGHT.words, at, below);
    }
    const time = pointedTime();
    if (time !== null && time < timeEnd()) pointer(context, x(time), HEIGHT.words);
  }
  function drawWords(context, x) {
    let free = -Infinity;
    for (const [start, until, word] of D.words) {
      const [from, to] = [x(start / D.position_s), x(until / D.position_s)];
      context.fillStyle = ACCENT;
      context.fillRect(from, HEIGHT.words - 3, Math.max(1, to - from - 1), 3);
      const text = cut(context, word, to - from);
      if (from < free || (text !== word && text.length < 4)) continue; // no room for it
      write(context, text, from, HEIGHT.words - 6, "left", "alphabetic", INK);
      free = from + context.measureText(text).width + 3;
    }
  }
  function pointer(context, at, y) {
    Object.assign(context, { fillStyle: "#ffea46", strokeStyle: INK, lineWidth: 1.2 });
    context.beginPath();
    context.moveTo(at - 6, y - 2);
    context.lineTo(at + 6, y - 2);
    context.lineTo(at, y + 9);
    context.closePath();
    context.fill();
    context.stroke();
  }
  function pointedTime() {
    const which = state.kind === "encoder" && state.q !== null ? "query" : "key";
    const bin = which === "query" ? state.q : state.k;
    if (bin === null || !isTime(which)) return null;
    const { edges } = axes()[which];
    return (edges[bin] + edges[bin + 1]) / 2;
  }
  function drawStrip(context, which, x, y) {
    const row = which === "row";
    const name = row ? ["looks at"] : ["looked", "at by"];
    name.forEach((part, i) => {
      const middle = y + HEIGHT.strip / 2 + (i - (name.length - 1) / 2) * 14;
      write(context, part, x(0) - 8, middle, "right", "middle");
    });
    context.fillStyle = "#eef0f3";
    context.fillRect(x(0), y, x(timeEnd()) - x(0), HEIGHT.strip);
    const bin = row ? state.q : state.k;
    if (bin === null || !state.shown) return;
    const axis = row ? axes().key : axes().query;
    const { value } = state.shown;
    const found = Array.from({ length: count(axis) }, (_, i) =>
      (row ? value(bin, i) : value(i, bin)));
    const top = Math.max(...found) || 1;
    context.fillStyle = ACCENT;
    found.forEach((each, i) => {
      const [from, to] = [x(axis.edges[i]), x(axis.edges[i + 1])];
      const height = (HEIGHT.strip * each) / top;
      context.fillRect(from, y + HEIGHT.strip - height, Math.max(0.8, to - from), height);
    });
  }

  /* The pattern. */
  let picture = { name: "" };
  function drawPattern() {
    const { query, key } = axes();
    const canvas = $("pattern");
    const wide = canvas.clientWidth || 300;
    const { left, right } = margins(wide);
    const room = wide - left - right;
    const inside = isTime("query")
      ? clamp(room * 0.72, 200, 560) : clamp(26 * query.n_sound, 104, 640);
    const top = 22;
    const below = isTime("key") ? 42 : 92;
    const { context } = hw.fit(canvas, top + inside + below);
    const x = (position) => left + (position / end(key)) * room;
    const y = (position) => top + (position / end(query)) * inside;
    places.pattern = { left, room, top, inside };
    if (!state.shown) return;
    const ratio = window.devicePixelRatio || 1;
    const size = [room, inside].map((each) => Math.max(1, Math.round(each * ratio)));
    const name = [state.kind, state.layer, state.head, state.all, ...size].join();
    if (picture.name !== name) {
      const copy = document.createElement("canvas");
      [copy.width, copy.height] = size;
      copy.getContext("2d").putImageData(heat(state.shown, axes(), ...size), 0, 0);
      picture = { name, copy };
    }
    context.drawImage(picture.copy, left, top, room, inside);
    drawAxes(context, x, y, { left, room, top, inside, below });
    drawMarks(context, x, y, { left, room, top, inside });
  }
  function drawAxes(context, x, y, { left, room, top, inside, below }) {
    const { query, key } = axes();
    context.font = font();
    const rows = { encoder: "time that looks (s)", decoder: "token that looks" };
    write(context, rows[state.kind] || "token being written", 2, 3, "left", "top");
    if (isTime("query")) {
      for (const tick of hw.ticks(0, timeEnd() * D.position_s, inside / 60)) {
        const at = y(tick / D.position_s);
        write(context, String(+tick.toFixed(3)), left - 8, at, "right", "middle");
      }
    } else {
      labelTokens(context, "query", inside / query.n_sound, state.q, left - 12, (middle) =>
        [left - 8, y(middle), 0]);
    }
    if (isTime("key")) {
      timeAxis(context, x, top + inside + 1, room, "time looked at (s)");
    } else {
      labelTokens(context, "key", room / key.n_sound, state.k, 64, (middle) =>
        [x(middle), top + inside + 8, -Math.PI / 3]);
      context.font = font();
      write(context, "token looked at", left + room, top + inside + below - 2, "right", "bottom");
    }
  }
  function labelTokens(context, which, step, chosen, room, place) {
    const axis = axes()[which];
    const every = Math.ceil(15 / step);
    for (let bin = 0; bin < axis.n_sound; bin++) {
      const beside = chosen !== null && Math.abs(bin - chosen) < every;
      if (bin !== chosen && (bin % every || beside)) continue;
      const [left, top, turn] = place((axis.edges[bin] + axis.edges[bin + 1]) / 2);
      context.save();
      context.translate(left, top);
      context.rotate(turn);
      context.font = font(12, bin === chosen ? "bold" : "");
      const token = D.tokens[tokenAt(which, axis.edges[bin])].text;
      const text = cut(context, label(token), room);
      write(context, text, 0, 0, "right", "middle", INK);
      context.restore();
    }
  }
  function drawMarks(context, x, y, { left, room, top, inside }) {
    const { query, key } = axes();
    const { q, k, at, shown } = state;
    const yellow = ["#000", "#ffea46"];
    if (state.all && isTime("key")) {
      line(context, x(SOUND_END), top, x(SOUND_END), top + inside, yellow);
    }
    if (state.all && isTime("query")) {
      line(context, left, y(SOUND_END), left + room, y(SOUND_END), yellow);
    }
    if (at !== null && isTime("key")) {
      line(context, x(at / D.position_s), top, x(at / D.position_s), top + inside);
    }
    if (k !== null && k < count(key)) {
      const width = Math.max(2, x(key.edges[k + 1]) - x(key.edges[k]));
      twice(context, () => context.rect(x(key.edges[k]), top, width, inside));
    }
    if (q === null || q >= count(query)) return;
    const height = Math.max(2, y(query.edges[q + 1]) - y(query.edges[q]));
    twice(context, () => context.rect(left, y(query.edges[q]), room, height));
    const peak = x(shown.peaks[q] + 0.5);
    const circle = () => context.arc(peak, y(query.edges[q]) + height / 2, 7, 0, 2 * Math.PI);
    twice(context, circle, ["#000", "#fff"], [4, 2]);
  }

  /* Under each token what goes to it or comes from it, or else when it is spoken. */
  function shareOf(token) {
    const { query, key } = axes();
    const { kind, q, k, shown } = state;
    if (!shown) return null;
    if (kind === "decoder" && q !== null) return shown.value(q, binAt(key, token));
    if (kind === "cross" && q === null && k !== null && token > 0) {
      return shown.share(binAt(query, token - 1), k);
    }
    return null;
  }
  function isHere(token) {
    const { kind, q } = state;
    if (q === null || kind === "encoder" || (kind === "cross" && token === 0)) return false;
    return binAt(axes().query, token - (kind === "cross" ? 1 : 0)) === q;
  }
  function drawTokens() {
    const found = D.tokens.map((_, token) => shareOf(token));
    const most = Math.max(...found.map((each) => each || 0)) || 1;
    [...$("tokens").children].forEach((node, token) => {
      const share = found[token];
      const { start } = D.tokens[token];
      const [bar, below] = [node.querySelector(".bar"), node.querySelector("small")];
      bar.style.width = share === null ? "0" : `${(100 * share) / most}%`;
      below.textContent = share !== null ? number(share) : start !== null ? hw.seconds(start) : "";
      node.classList.toggle("here", isHere(token));
    });
    const list = $("tokens");
    const here = list.querySelector(".here");
    if (!here || list.matches(":hover")) return; // nothing moves under the pointer
    const [top, height] = [here.offsetTop, here.offsetHeight];
    if (top < list.scrollTop) list.scrollTop = top - 4;
    const past = top + height - list.scrollTop - list.clientHeight;
    if (past > 0) list.scrollTop += past + 4;
  }

  function drawText() {
    const text = attention.readout();
    if ($("readout").textContent !== text) $("readout").textContent = text;
    $("clock").textContent = `${(state.at || 0).toFixed(2)} / ${hw.seconds(D.sound_s)}`;
    const time = pointedTime();
    const now = time === null ? state.at || 0 : time * D.position_s;
    $("sound").setAttribute("aria-valuenow", now.toFixed(2));
    $("sound").setAttribute("aria-valuetext", `${now.toFixed(2)} seconds`);
  }
  let waiting = 0;
  attention.draw = () => {
    if (waiting) return;
    waiting = requestAnimationFrame(() => {
      waiting = 0;
      drawSound();
      drawPattern();
      drawTokens();
      drawText();
    });
  };
  Object.assign(attention, { heat, places, pointedTime, sizeOf });
})();
