"use strict";
/* Heads of attention: their numbers, what is pointed at, and words for it.
   attention_draw.js draws, attention_use.js has the controls. */
const attention = (() => {
  const D = hw.data;
  const NAMES = {
    encoder: "Encoder self-attention",
    decoder: "Decoder self-attention",
    cross: "Cross-attention",
  };
  // In positions, as all of time is here, until it is drawn or played.
  const SOUND_END = D.kinds.encoder.key.edges[D.kinds.encoder.key.n_sound];
  const WINDOW_END = D.kinds.encoder.key.edges.at(-1);

  /* q and k are the bins in question, or null; cell: both belong together;
     said: a sentence before the others; at: where the sound is, in seconds. */
  const state = {
    kind: "encoder", layer: 0, head: 0, shown: null,
    q: null, k: null, cell: false, said: "", all: false, at: null,
  };

  /* Axes. A row of cross-attention is the step that writes the next token. */
  const axes = (kind = state.kind) => D.kinds[kind];
  const isTime = (which, kind = state.kind) =>
    kind === "encoder" || (kind === "cross" && which === "key");
  const tokenAt = (which, position) =>
    position + (state.kind === "cross" && which === "query" ? 1 : 0);
  const count = (axis) => (state.all ? axis.edges.length - 1 : axis.n_sound);
  const end = (axis) => axis.edges[count(axis)];
  const timeEnd = () => (state.all ? WINDOW_END : SOUND_END);
  const sizeOf = (axis, bin) => axis.edges[bin + 1] - axis.edges[bin];
  const clamp = (value, low, high) => Math.min(Math.max(value, low), high);
  function binAt(axis, position) {
    let low = 0;
    let high = axis.edges.length - 2;
    while (low < high) {
      const middle = (low + high + 1) >> 1;
      if (axis.edges[middle] <= position) low = middle;
      else high = middle - 1;
    }
    return low;
  }

  /* Heads: deflated bytes, unpacked when they are first needed. */
  const unpacked = new Map();
  function load(kind, layer, head) {
    const name = `${kind}.${layer}.${head}`;
    if (!unpacked.has(name)) unpacked.set(name, unpack(axes(kind), axes(kind).heads[layer][head]));
    return unpacked.get(name);
  }
  async function unpack({ query, key }, head) {
    const nq = query.edges.length - 1;
    const nk = key.edges.length - 1;
    const packed = new Blob([hw.bytes(head.packed)]).stream();
    const plain = packed.pipeThrough(new DecompressionStream("deflate"));
    const buffer = await new Response(plain).arrayBuffer();
    const codes = new Uint8Array(buffer, 0, nq * nk);
    const numbers = new DataView(buffer, nq * nk);
    const part = (n) =>
      Array.from({ length: nq }, (_, q) => numbers.getUint16(2 * (n * nq + q), true));
    return {
      nq, nk, codes,
      largest: head.largest,
      value: (q, k) => head.largest * (codes[q * nk + k] / 255) ** 2,
      share: (q, k) => head.largest * (codes[q * nk + k] / 255) ** 2 * sizeOf(key, k),
      peaks: part(0),
      peakValues: part(1).map((each) => each / 65535),
      onSound: part(2).map((each) => each / 65535),
    };
  }

  /* Words for what is pointed at. */
  function number(value) {
    if (value >= 0.0995) return value.toFixed(2);
    if (value >= 0.00095) return String(+value.toPrecision(2));
    return value > 0 ? "under 0.001" : "0";
  }
  const visible = (text) => text.replace(/\n/g, "⏎").replace(/\t/g, "⇥") || "∅";
  const label = (text) => visible(text.replace(/^<\|(.+)\|>$/, "$1").trim());
  const quoted = (token) => `'${visible(D.tokens[token].text)}'`;
  const seconds = (position) => (position * D.position_s).toFixed(2);
  function naming(which, bin) {
    const { edges } = axes()[which];
    const [from, to] = [edges[bin], edges[bin + 1]];
    const one = to - from === 1;
    if (isTime(which)) return one ? `${seconds(from)} s` : `${seconds(from)}–${seconds(to)} s`;
    const [first, last] = [tokenAt(which, from), tokenAt(which, to - 1)];
    return one ? `token ${quoted(first)}` : `tokens ${quoted(first)} to ${quoted(last)}`;
  }
  function namingPeak(q) {
    const position = state.shown.peaks[q];
    return isTime("key") ? `${seconds(position)} s` : `token ${quoted(position)}`;
  }
  function topQuery(k) {
    const { codes, nk } = state.shown;
    let best = 0;
    for (let q = 1; q < axes().query.n_sound; q++) {
      if (codes[q * nk + k] > codes[best * nk + k]) best = q;
    }
    return best;
  }
  function readout() {
    const { shown, q, k, said, cell } = state;
    if (!shown) return "";
    const parts = said ? [said] : [];
    if (q !== null) {
      const padding = isTime("key") && WINDOW_END > SOUND_END
        ? `; ${hw.percent(1 - shown.onSound[q])} goes to the padding` : "";
      const peak = `${namingPeak(q)} (${number(shown.peakValues[q])})`;
      parts.push(`${naming("query", q)} looks most at ${peak}${padding}`);
    }
    if (cell && q !== null && k !== null) {
      parts.push(`here: ${number(shown.share(q, k))} goes to ${naming("key", k)}`);
    } else if (k !== null) {
      const top = topQuery(k);
      const looker = `${naming("query", top)} (${number(shown.share(top, k))})`;
      parts.push(`${naming("key", k)} is looked at most by ${looker}`);
    }
    return parts.length ? `${parts.join(". ")}.` : "Point at a token, a time or the pattern.";
  }

  /* Pointing. Follow says that the sound points, which is not read out. */
  function point(q, k, { cell = false, said = "", follow = false } = {}) {
    Object.assign(state, { q, k, cell, said });
    document.getElementById("readout").setAttribute("aria-live", follow ? "off" : "polite");
    attention.draw();
  }
  function pointTime(position, options = {}) {
    const { query, key } = axes();
    if (state.kind === "encoder") {
      return point(binAt(query, position), binAt(key, position), options);
    }
    if (state.kind === "cross") return point(null, binAt(key, position), options);
    const at = position * D.position_s;
    const token = D.tokens.findIndex(({ start, end: until }) =>
      start !== null && start <= at && at < until);
    if (token >= 0) return pointToken(token, options);
    return point(null, null, { ...options, said: `no token at ${at.toFixed(2)} s` });
  }
  function pointToken(token, options = {}) {
    const { query, key } = axes();
    const { start, end: until } = D.tokens[token];
    const nothing = (why) => point(null, null, { said: `token ${quoted(token)} ${why}` });
    if (state.kind === "decoder") return point(binAt(query, token), binAt(key, token), options);
    if (state.kind === "cross") {
      if (token === 0) return nothing("begins the text: nothing is looked at to write it");
      return point(binAt(query, token - 1), null, options);
    }
    if (start === null) return nothing("is not spoken, so that the encoder has no time for it");
    const middle = Math.floor((start + until) / 2 / D.position_s);
    const position = clamp(middle, 0, SOUND_END - 1);
    const said = `token ${quoted(token)}`;
    return point(binAt(query, position), binAt(key, position), { ...options, said });
  }

  /* Playing, from a time in seconds. A button that is given stops at its second click. */
  function play(from, button = null) {
    const start = clamp(from, 0, Math.max(0, D.sound_s - 0.02));
    const moment = { src: D.audio, start, end: D.sound_s, onTime, onStop };
    if (button) moment.button = button;
    else moment.from = start;
    hw.play(moment);
    if (hw.playing === moment) attention.showPlaying(true);
  }
  function onTime(at) {
    state.at = at;
    if (document.getElementById("follow").checked) {
      pointTime(clamp(Math.floor(at / D.position_s), 0, SOUND_END - 1), { follow: true });
    }
    attention.draw();
  }
  function onStop() {
    attention.showPlaying(false);
    attention.draw();
  }
  function playToken(token) {
    const { start } = D.tokens[token];
    if (start !== null) return play(start);
    if (state.kind === "cross" && token > 0 && state.shown) {
      return play(state.shown.peaks[binAt(axes().query, token - 1)] * D.position_s);
    }
    const said = `token ${quoted(token)} is not spoken; there is nothing to play`;
    return point(state.q, state.k, { said });
  }
  function playBin(which, bin) {
    const position = axes()[which].edges[bin];
    if (isTime(which)) play(position * D.position_s);
    else playToken(tokenAt(which, position));
  }

  return {
    D, NAMES, SOUND_END, WINDOW_END, state, axes, isTime, tokenAt, count, end, timeEnd, sizeOf,
    clamp, binAt, load, number, label, seconds, readout, point, pointTime, pointToken, play,
    playToken, playBin,
  };
})();
