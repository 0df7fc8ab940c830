/* The controls: kinds, the grid of heads, pointer and keys. */
(() => {
  const { D, NAMES, SOUND_END, WINDOW_END, state, axes, isTime, count, end, timeEnd, clamp } =
    attention;
  const { binAt, label } = attention;
  const { el } = hw;
  const $ = (id) => document.getElementById(id);
  const name = (layer, head) => `${layer}.${head}`;
  const nats = (entropy) => (entropy === null ? "–" : entropy.toFixed(2));
  const isTiming = (layer, head) =>
    D.timing_heads.some((each) => each[0] === layer && each[1] === head);

  attention.showPlaying = (playing) => {
    $("play").setAttribute("aria-pressed", String(playing));
    $("play").textContent = playing ? "Stop" : "Play";
  };

  /* Kinds. */
  const kinds = {};
  for (const kind of ["encoder", "decoder", "cross"]) {
    const n = D.kinds[kind].heads.flat().length;
    kinds[kind] = el("button", { type: "button", "aria-pressed": "false" },
      `${NAMES[kind].replace(" self-attention", "").replace("-attention", "")} (${n})`);
    kinds[kind].setAttribute("aria-label", `${NAMES[kind]}, ${n} heads`);
    kinds[kind].addEventListener("click", () => chooseKind(kind));
    $("kinds").append(kinds[kind]);
  }
  const last = {}; // the head that was chosen last of each kind
  function chooseKind(kind) {
    last[state.kind] = [state.layer, state.head];
    const before = pointedToken();
    const time = attention.pointedTime();
    Object.assign(state, { kind, shown: null, q: null, k: null, cell: false, said: "" });
    for (const [each, button] of Object.entries(kinds)) {
      button.setAttribute("aria-pressed", String(each === kind));
    }
    makeGrid();
    choose(...(last[kind] || [0, 0]));
    // What was pointed at stays so, as far as this kind has it.
    if (time !== null && kind !== "decoder") attention.pointTime(Math.floor(time));
    else if (before !== null) attention.pointToken(before);
  }
  function pointedToken() {
    if (state.q === null || state.kind === "encoder") return null;
    return attention.tokenAt("query", axes().query.edges[state.q]);
  }

  /* The grid. One head can be reached by Tab; arrows choose among them. */
  let buttons = [];
  const watch = new IntersectionObserver((entries) => {
    for (const { isIntersecting, target } of entries) {
      if (!isIntersecting) continue;
      watch.unobserve(target);
      drawSmall(target);
    }
  }, { rootMargin: "200px" });
  function makeGrid() {
    watch.disconnect();
    const layers = axes().heads.map((heads, layer) => el("div", {
      class: heads.length > 6 ? "layer" : "layer few", role: "none",
    }, heads.map(({ entropy }, head) => {
        const timing = state.kind === "cross" && isTiming(layer, head);
        const title = `Head ${name(layer, head)}, entropy ${nats(entropy)} nats`;
        return el("button", {
          type: "button", class: "head", role: "radio", "aria-checked": "false", tabindex: "-1",
          "aria-label": timing ? `${title}, used for word timing` : title,
          "data-layer": layer, "data-head": head,
          onclick: () => choose(layer, head),
        }, el("canvas", { width: 56, height: 56 }),
        el("span", {}, el("b", {}, name(layer, head), timing ? "*" : ""),
          el("i", {}, nats(entropy))));
      })));
    $("grid").replaceChildren(...layers);
    $("starred").hidden = state.kind !== "cross";
    buttons = [...$("grid").querySelectorAll(".head")];
    buttons.forEach((button) => watch.observe(button));
  }
  async function drawSmall(button) {
    const { kind } = state;
    const { layer, head } = button.dataset;
    const found = await attention.load(kind, layer, head);
    const canvas = button.querySelector("canvas");
    const side = Math.round(Math.max(32, canvas.clientWidth) * (window.devicePixelRatio || 1));
    canvas.width = side;
    canvas.height = side;
    if (kind === state.kind) {
      canvas.getContext("2d").putImageData(attention.heat(found, D.kinds[kind], side, side), 0, 0);
    }
  }
  async function choose(layer, head) {
    Object.assign(state, { layer, head });
    for (const button of buttons) {
      const mine = +button.dataset.layer === layer && +button.dataset.head === head;
      button.setAttribute("aria-checked", String(mine));
      button.tabIndex = mine ? 0 : -1;
    }
    const { kind } = state;
    const { entropy } = axes().heads[layer][head];
    const timing = kind === "cross" && isTiming(layer, head) ? ", used for word timing" : "";
    $("view-title").textContent =
      `${NAMES[kind]}, head ${name(layer, head)}: entropy ${nats(entropy)} nats${timing}`;
    const found = await attention.load(kind, layer, head);
    if (state.kind !== kind || state.layer !== layer || state.head !== head) return;
    state.shown = found;
    drawLegend();
    attention.draw();
  }
  $("grid").addEventListener("keydown", (event) => {
    const at = buttons.indexOf(document.activeElement);
    const wide = axes().heads[0].length;
    const steps = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -wide, ArrowDown: wide };
    let to = at + (steps[event.key] || 0);
    if (event.key === "Home") to = 0;
    if (event.key === "End") to = buttons.length - 1;
    if (at < 0 || to === at || !buttons[to]) return;
    event.preventDefault();
    buttons[to].focus();
    choose(+buttons[to].dataset.layer, +buttons[to].dataset.head);
  });
  function drawLegend() {
    const bar = el("canvas", { width: 256, height: 1, "aria-hidden": "true" });
    const context = bar.getContext("2d");
    for (let i = 0; i < 256; i++) {
      context.fillStyle = hw.colour(i / 255);
      context.fillRect(i, 0, 1, 1);
    }
    const what = isTime("key") ? `a position of ${D.position_s * 1000} ms` : "a token";
    const { largest } = state.shown;
    const short = (value) => String(+value.toPrecision(2));
    $("legend").replaceChildren(`Attention to ${what}: 0`, bar,
      `${short(largest)} (a scale of square roots: the middle is ${short(largest / 4)})`);
  }

  /* Tokens. */
  function pointedAt(token, node) {
    for (const each of $("tokens").children) each.tabIndex = each === node ? 0 : -1;
    attention.pointToken(token);
  }
  D.tokens.forEach(({ text }, token) => {
    const special = /^<\|.*\|>$/.test(text);
    const node = el("button", {
      type: "button", class: special ? "token special" : "token", tabindex: token ? "-1" : "0",
      "aria-describedby": "readout",
      onpointerenter: () => attention.pointToken(token),
      onfocus: () => pointedAt(token, node),
      onclick: () => { attention.pointToken(token); attention.playToken(token); },
    }, label(text), el("small"), el("span", { class: "bar" }));
    $("tokens").append(node);
  });
  $("tokens").addEventListener("keydown", (event) => {
    const nodes = [...$("tokens").children];
    const at = nodes.indexOf(document.activeElement);
    const places = { ArrowLeft: at - 1, ArrowRight: at + 1, Home: 0, End: nodes.length - 1 };
    const to = nodes[places[event.key]];
    if (at < 0 || !to) return;
    event.preventDefault();
    to.focus();
  });

  /* The spectrogram: a slider in time. */
  function soundPosition(event) {
    const { left, room } = attention.places.sound;
    const share = (event.clientX - $("sound").getBoundingClientRect().left - left) / room;
    return clamp(share, 0, 0.999999) * timeEnd();
  }
  for (const type of ["pointermove", "pointerdown"]) {
    $("sound").addEventListener(type, (event) => {
      attention.pointTime(Math.floor(soundPosition(event)));
    });
  }
  $("sound").addEventListener("click", (event) => {
    attention.play(soundPosition(event) * D.position_s);
  });
  let slid = 0;
  $("sound").addEventListener("keydown", (event) => {
    const width = attention.sizeOf(axes("encoder").key, 0);
    const steps = {
      ArrowLeft: -1, ArrowDown: -1, ArrowRight: 1, ArrowUp: 1, PageUp: 10, PageDown: -10,
    };
    const time = attention.pointedTime();
    if (time !== null) slid = Math.floor(time);
    if (event.key === "Enter" || event.key === " ") attention.play(slid * D.position_s);
    else if (event.key in steps) {
      slid += steps[event.key] * width * (event.shiftKey ? 10 : 1);
    } else if (event.key === "Home") slid = 0;
    else if (event.key === "End") slid = timeEnd() - 1;
    else return;
    event.preventDefault();
    slid = clamp(slid, 0, timeEnd() - 1);
    if (event.key !== "Enter" && event.key !== " ") attention.pointTime(slid);
  });

  /* The pattern. */
  function patternCell(event) {
    const { left, room, top, inside } = attention.places.pattern;
    const box = $("pattern").getBoundingClientRect();
    const across = (event.clientX - box.left - left) / room;
    const down = (event.clientY - box.top - top) / inside;
    const { query, key } = axes();
    return {
      inside: across >= 0 && across < 1 && down >= 0 && down < 1,
      q: binAt(query, clamp(down, 0, 0.999999) * end(query)),
      k: binAt(key, clamp(across, 0, 0.999999) * end(key)),
    };
  }
  for (const type of ["pointermove", "pointerdown"]) {
    $("pattern").addEventListener(type, (event) => {
      const { q, k, inside } = patternCell(event);
      if (inside) attention.point(q, k, { cell: true });
    });
  }
  $("pattern").addEventListener("click", (event) => {
    const { k, inside } = patternCell(event);
    if (inside) attention.playBin("key", k);
  });
  $("pattern").addEventListener("keydown", (event) => {
    const { query, key } = axes();
    const far = event.shiftKey ? 10 : 1;
    const steps = {
      ArrowLeft: [0, -far], ArrowRight: [0, far], ArrowUp: [-far, 0], ArrowDown: [far, 0],
    };
    let { q, k } = state;
    if (q === null || k === null) [q, k] = [q || 0, k || 0];
    if (event.key === "Enter" || event.key === " ") attention.playBin("key", k);
    else if (event.key === "Home") {
      attention.point(q, binAt(key, state.shown.peaks[q]), { cell: true });
    } else if (event.key in steps) {
      q = clamp(q + steps[event.key][0], 0, count(query) - 1);
      k = clamp(k + steps[event.key][1], 0, count(key) - 1);
      attention.point(q, k, { cell: true });
    } else return;
    event.preventDefault();
  });

  /* The rest. */
  $("play").addEventListener("click", () => attention.play(0, $("play")));
  $("all-label").hidden = WINDOW_END <= SOUND_END;
  $("all").addEventListener("change", (event) => {
    Object.assign(state, { all: event.target.checked, q: null, k: null, said: "" });
    buttons.forEach(drawSmall);
    attention.draw();
  });
  if (!D.timing_known) $("starred").textContent += ": no alignment heads are known for this model, and half of all heads stand in";
  $("sound").setAttribute("aria-valuemax", D.sound_s.toFixed(2));
  window.addEventListener("resize", attention.draw);

  if (typeof DecompressionStream === "undefined") {
    $("readout").textContent = "This browser is too old for the patterns: it cannot unpack them.";
  } else {
    const [timing] = D.timing_heads;
    if (timing) last.cross = timing;
    const spoken = D.tokens.findIndex(({ start }) => start !== null);
    chooseKind(spoken >= 0 && timing ? "cross" : "encoder");
    if (spoken >= 0) attention.pointToken(spoken);
  }
})();
