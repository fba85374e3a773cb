"use strict";
const data = JSON.parse(document.getElementById("data").textContent);
const run = data.run, results = run.results, redraws = [];
const el = (name, attributes = {}, ...children) => {
  const svg = ["svg", "path", "line", "text", "rect", "g"].includes(name);
  const node = svg ? document.createElementNS("http://www.w3.org/2000/svg", name) : document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
  node.append(...children.filter(c => c !== null && c !== undefined));
  return node;
};
const count = n => n === null || n === undefined ? "–" : Math.round(n).toLocaleString("en-US");
const span = us => us === null || us === undefined ? "–" : us < 1000 ? `${Math.round(us)} µs` : us < 1e5 ? `${(us / 1e3).toPrecision(3)} ms` : us < 1e6 ? `${Math.round(us / 1e3)} ms` : `${(us / 1e6).toPrecision(3)} s`;
const short = n => n >= 1e9 ? `${+(n / 1e9).toPrecision(3)} G` : n >= 1e6 ? `${+(n / 1e6).toPrecision(3)} M` : n >= 1e4 ? `${+(n / 1e3).toPrecision(3)} k` : `${+n.toPrecision(3)}`;
const one = n => n === undefined || n === null ? "–" : (+n.toFixed(1)).toString();

function head() {
  const good = run.exit === "passed", unsure = run.exit === "invalid" || run.exit === "interrupted";
  const words = { passed: "Passed", invalid: "Invalid: these numbers do not judge the consumer", incorrect: "Failed: rows are not as they were sent", threshold: "Failed: a threshold was missed", interrupted: "Interrupted: what was measured until then", error: "Not completed" };
  const v = run.verification, sure = run.verified !== "none" && !run.config.null;
  const all = sure && v.lost + v.duplicated + v.corrupted + v.reordered === 0 && v.acked > 0;
  let lead = `${count(results.achieved_rate)} messages a second for ${one(results.steady_seconds)} seconds. `;
  if (all) lead += `All ${count(v.acked)} acknowledged messages arrived exactly once, ${run.totals.connects ? "" : "in order "}and unaltered. `;
  if (results.visible_p99) lead += `99 of 100 could be read in the database within ${span(results.visible_p99)} of the moment they were due; half of them within ${span(results.visible_p50)}.`;
  const notes = [];
  if (run.error) notes.push(["bad", run.error]);
  run.violations.forEach(t => notes.push(["bad", t]));
  run.thresholds.forEach(([t, holds]) => notes.push([holds ? "good" : "bad", `${holds ? "holds" : "missed"}: ${t}`]));
  run.reasons.forEach(r => notes.push([r.severity === "invalid" ? "bad" : "warn", `${r.severity === "invalid" ? "invalid" : "note"}: ${r.text}`]));
  return el("header", { class: good ? "" : unsure ? "unsure" : "bad" }, el("h1", {}, words[run.exit]), el("p", { class: "lead" }, lead),
    notes.length ? el("ul", {}, ...notes.map(([c, t]) => el("li", { class: c }, t))) : null,
    el("p", { class: "soft" }, `run ${run.run} · ${new Date(run.started_us / 1000).toISOString().replace("T", " ").slice(0, 19)} UTC · seed ${run.seed} · loadtester ${run.version}`));
}

function tiles() {
  const v = run.verification, bad = v.lost + v.duplicated + v.corrupted + v.reordered;
  const list = [
    [count(results.achieved_rate) + " /s", "sent"], [results.stored_rate ? count(results.stored_rate) + " /s" : "–", "stored"],
    [run.verified === "none" || run.config.null ? "not checked" : count(bad), "lost, doubled, swapped or altered"], [span(results.visible_p99), "99 % visible within"], [span(results.visible_max), "slowest message"],
    [count(results.backlog_max), "largest backlog"], [run.drained.complete ? one(run.drained.seconds) + " s" : "not empty", "backlog gone after the last message"],
    [one(results.generator_cpu_percent) + " %", "tester CPU (100 % is a core)"]];
  if (results.consumer_cpu_percent !== undefined) list.push([one(results.consumer_cpu_percent) + " %", "consumer CPU"], [one(results.consumer_rss_bytes_max / 1e6) + " MB", "consumer memory, at most"]);
  return el("div", { class: "tiles" }, ...list.map(([a, b]) => el("div", { class: "tile" }, el("b", {}, a), el("span", {}, b))));
}

// Lines over the time of the run. A series is {name, values, color}; gaps stay gaps.
function chart(title, text, x, series, { log = false, format = short, zero = true } = {}) {
  series = series.filter(s => s.values && s.values.some(v => v !== null));
  if (!series.length || x.length < 2) return null;
  const box = el("div", { class: "chart" }), tip = el("div", { class: "tip" });
  const legend = el("div", { class: "legend" }, ...series.map(s => { const i = el("i"); i.style.background = `var(--c${s.color})`; return el("span", {}, i, s.name); }));
  const draw = () => {
    const w = Math.max(280, box.clientWidth), h = 190, left = 62, right = 10, top = 8, bottom = 24;
    const known = series.flatMap(s => s.values.filter(v => v !== null && (!log || v > 0)));
    let hi = Math.max(...known), lo = log ? Math.min(...known) : zero ? Math.min(0, ...known) : Math.min(...known);
    if (hi === lo) hi = lo + 1;
    hi = log ? hi * 1.2 : hi + (hi - lo) * 0.05;
    const sx = v => left + (v - x[0]) / (x[x.length - 1] - x[0]) * (w - left - right);
    const sy = v => top + (1 - (log ? Math.log(v / lo) / Math.log(hi / lo) : (v - lo) / (hi - lo))) * (h - top - bottom);
    const svg = el("svg", { viewBox: `0 0 ${w} ${h}`, height: h });
    phases(svg, x, sx, top, h - bottom);
    for (const v of log ? decades(lo, hi) : steps(lo, hi, 4)) {
      svg.append(el("line", { x1: left, x2: w - right, y1: sy(v), y2: sy(v), stroke: "var(--line)" }), el("text", { x: left - 6, y: sy(v) + 4, "text-anchor": "end" }, format(v)));
    }
    for (const v of steps(x[0], x[x.length - 1], w < 500 ? 4 : 8)) svg.append(el("text", { x: sx(v), y: h - 6, "text-anchor": "middle" }, `${+v.toFixed(1)} s`));
    for (const s of series) {
      let path = "", pen = false;
      s.values.forEach((v, i) => { if (v === null || (log && v <= 0)) { pen = false; return; } path += `${pen ? "L" : "M"}${sx(x[i]).toFixed(1)} ${sy(v).toFixed(1)}`; pen = true; });
      svg.append(el("path", { d: path, fill: "none", stroke: `var(--c${s.color})`, "stroke-width": 1.8, "stroke-linejoin": "round" }));
    }
    const cursor = el("line", { y1: top, y2: h - bottom, stroke: "var(--soft)", "stroke-dasharray": "3 3", visibility: "hidden" });
    svg.append(cursor);
    svg.onpointermove = e => {
      const at = (e.clientX - svg.getBoundingClientRect().left) / svg.getBoundingClientRect().width * w;
      let i = 0; x.forEach((v, n) => { if (Math.abs(sx(v) - at) < Math.abs(sx(x[i]) - at)) i = n; });
      cursor.setAttribute("x1", sx(x[i])); cursor.setAttribute("x2", sx(x[i])); cursor.setAttribute("visibility", "visible");
      tip.replaceChildren(el("div", {}, `${x[i].toFixed(0)} s, ${data.phases[i] || ""}`), ...series.map(s => el("div", {}, `${s.name}: ${s.values[i] === null ? "–" : format(s.values[i])}`)));
      tip.style.display = "block"; tip.style.top = "8px";
      const px = sx(x[i]) / w * box.clientWidth; tip.style.left = px > box.clientWidth / 2 ? "" : `${px + 12}px`; tip.style.right = px > box.clientWidth / 2 ? `${box.clientWidth - px + 12}px` : "";
    };
    svg.onpointerleave = () => { tip.style.display = "none"; cursor.setAttribute("visibility", "hidden"); };
    box.replaceChildren(svg, tip);
  };
  redraws.push(draw);
  return el("section", {}, el("h2", {}, title), el("p", {}, text), box, legend);
}
function steps(lo, hi, n) {
  const raw = (hi - lo) / n, power = 10 ** Math.floor(Math.log10(raw)), step = [1, 2, 5, 10].map(m => m * power).find(s => s >= raw), list = [];
  for (let v = Math.ceil(lo / step) * step; v <= hi + step * 1e-6; v += step) list.push(v);
  return list;
}
function decades(lo, hi) { const list = []; for (let p = Math.ceil(Math.log10(lo)); p <= Math.log10(hi); p++) list.push(10 ** p); return list.length > 1 ? list : [lo, hi / 1.2]; }
// Warm-up and drain are shaded: they are shown, and not part of the verdict.
function phases(svg, x, sx, top, bottom) {
  data.phases.forEach((phase, i) => {
    if (phase === "steady" || i >= x.length) return;
    const from = i ? sx(x[i - 1]) : sx(x[0]);
    svg.append(el("rect", { x: from, y: top, width: Math.max(0, sx(x[i]) - from), height: bottom - top, fill: "var(--shade)" }));
  });
}
function heat() {
  const cells = data.heat;
  if (!cells.rows.length) return null;
  const box = el("div", { class: "chart" }), most = Math.max(...cells.rows.flatMap(r => r.map(c => c[1])));
  const draw = () => {
    const w = Math.max(280, box.clientWidth), h = 220, left = 62, right = 10, top = 8, bottom = 24, x = data.seconds;
    const buckets = cells.rows.flatMap(r => r.map(c => c[0])), low = Math.min(...buckets), high = Math.max(...buckets) + 1;
    const sx = v => left + (v - x[0]) / (x[x.length - 1] - x[0] || 1) * (w - left - right), sy = b => top + (high - b) / (high - low) * (h - top - bottom);
    const svg = el("svg", { viewBox: `0 0 ${w} ${h}`, height: h });
    cells.seconds.forEach((at, i) => cells.rows[i].forEach(([bucket, n]) => {
      const from = Math.max(left, sx(at)), to = Math.min(w - right, sx(at + 1));
      if (to > from) svg.append(el("rect", { x: from, width: to - from + .3, y: sy(bucket + 1), height: sy(bucket) - sy(bucket + 1) + .3, fill: `rgba(var(--heat),${(0.08 + 0.92 * Math.log1p(n) / Math.log1p(most)).toFixed(3)})` }));
    }));
    for (let b = low; b <= high; b++) if (b % (high - low > 12 ? 4 : 2) === 0) svg.append(el("text", { x: left - 6, y: sy(b) + 4, "text-anchor": "end" }, span(2 ** (b / 2))));
    for (const v of steps(x[0], x[x.length - 1], w < 500 ? 4 : 8)) svg.append(el("text", { x: sx(v), y: h - 6, "text-anchor": "middle" }, `${+v.toFixed(1)} s`));
    box.replaceChildren(svg);
  };
  redraws.push(draw);
  return el("section", {}, el("h2", {}, "Where the latencies lie"), el("p", {}, "Each column is a second, each row a range of visible latency; the stronger the color, the more messages. A stall shows as a ramp."), box);
}
function spectrum() {
  const names = Object.keys(data.spectra);
  if (!names.length) return null;
  const box = el("div", { class: "chart" });
  const draw = () => {
    const w = Math.max(280, box.clientWidth), h = 240, left = 62, right = 14, top = 8, bottom = 26;
    const points = names.flatMap(n => data.spectra[n].filter(p => p[1] > 0)), lo = Math.min(...points.map(p => p[1])), hi = Math.max(...points.map(p => p[1])) * 1.2;
    const inverse = q => Math.log10(1 / (1 - q)), far = Math.max(1, ...points.filter(p => p[0] < 1).map(p => inverse(p[0])));
    const sx = q => left + Math.min(1, (q < 1 ? inverse(q) : far) / far) * (w - left - right), sy = v => top + (1 - Math.log(v / lo) / Math.log(hi / lo)) * (h - top - bottom);
    const svg = el("svg", { viewBox: `0 0 ${w} ${h}`, height: h });
    for (const v of decades(lo, hi)) svg.append(el("line", { x1: left, x2: w - right, y1: sy(v), y2: sy(v), stroke: "var(--line)" }), el("text", { x: left - 6, y: sy(v) + 4, "text-anchor": "end" }, span(v)));
    [0, .9, .99, .999, .9999, .99999, .999999].filter((q, i) => inverse(q) <= far && (w > 500 || i % 2 === 0)).forEach(q => svg.append(el("text", { x: sx(q), y: h - 6, "text-anchor": sx(q) > w - 40 ? "end" : "middle" }, q ? `${+(q * 100).toFixed(4)} %` : "0 %"), el("line", { x1: sx(q), x2: sx(q), y1: top, y2: h - bottom, stroke: "var(--line)" })));
    names.forEach((name, n) => { const list = data.spectra[name].filter(p => p[1] > 0); svg.append(el("path", { d: list.map((p, i) => `${i ? "L" : "M"}${sx(p[0]).toFixed(1)} ${sy(p[1]).toFixed(1)}`).join(""), fill: "none", stroke: `var(--c${n})`, "stroke-width": 1.8 })); });
    box.replaceChildren(svg);
  };
  redraws.push(draw);
  const legend = el("div", { class: "legend" }, ...names.map((name, n) => { const i = el("i"); i.style.background = `var(--c${n})`; return el("span", {}, i, name); }));
  return el("section", {}, el("h2", {}, "Percentiles"), el("p", {}, "How many of the messages were at least this fast. Each step to the right is ten times rarer."), box, legend);
}
const table = (heads, rows, left = [], wrap = left) => el("div", { class: "scroll" }, el("table", {}, el("tr", {}, ...heads.map((h, i) => el("th", left.includes(i) ? { class: "left" } : {}, h))),
  ...rows.map(r => el("tr", {}, ...r.map((c, i) => el("td", { class: (left.includes(i) ? "left " : "") + (wrap.includes(i) ? "wrap " : "") + (c && c.mark ? c.mark : "") }, c && c.mark ? c.text : String(c)))))));
function latencies() {
  const meaning = { schedule_lag: "handed to the producer", ack: "acknowledged by Kafka", ack_service: "the same, from the hand-over", row: `the row's timestamp (${run.row_timestamp})`, commit: "commit time of the row", visible: "first look that saw the row", visible_lower: "the look before it", refused: "a server said no", answer: "a reader had its answer", behind: "how much older a reader's newest value was than what had been acknowledged" };
  const rows = run.latencies.filter(l => l.count).map(l => [`${l.name}: ${meaning[l.name]}`, ...["p50", "p90", "p95", "p99", "p999", "p9999", "max"].map(p => span(l[p])), count(l.count)]);
  if (!rows.length) return null;
  const offset = run.clock_during ?? run.clock_before, notes = [`Every latency but ack_service counts from the moment a message was due, not from when it was sent. The database's clock was ${span(Math.abs(offset.offset_us))} ${offset.offset_us < 0 ? "behind" : "ahead"} ${run.clock_during ? "during the run" : "at the start"} (± ${span(offset.within_us)}); only row and commit depend on it.`];
  const negative = run.latencies.find(l => l.negative);
  if (negative) notes.push(`${count(negative.negative)} ${negative.name} latencies were negative (down to ${span(negative.most_negative_us)}): the clocks differ.`);
  const models = run.models.map(m => { const v = m.latencies.find(l => l[0] === "visible")[1]; return [m.model, ...["p50", "p99", "max"].map(p => span(v[p])), count(v.count)]; });
  return el("section", {}, el("h2", {}, "Latencies"), el("p", {}, notes.join(" ")), table(["counted until", "p50", "p90", "p95", "p99", "p99.9", "p99.99", "max", "messages"], rows),
    el("details", {}, el("summary", {}, "visible, by model"), table(["model", "p50", "p99", "max", "messages"], models)));
}
function verification() {
  const bad = ["lost", "duplicated", "corrupted", "reordered"];
  const rows = data.classes.map(([name, n, text]) => [bad.includes(name) ? { mark: n ? "bad" : "good", text: name } : name, bad.includes(name) ? { mark: n ? "bad" : "good", text: count(n) } : count(n), text]);
  const examples = [...run.examples].sort((a, b) => a.class.localeCompare(b.class)).map(e => [e.class, e.stream, e.seq ?? "", `${e.topic} ${e.partition}`, e.offset ?? (e.offset_at_least === null ? "" : `${e.offset_at_least} or later`), e.detail]);
  const how = { full: "Every row was read back and every column compared with what the seed says.", count: "Every row was counted; columns were not compared.", none: "The tables were not read back." };
  return el("section", {}, el("h2", {}, "What became of the messages"), el("p", {}, run.config.null ? "Messages went nowhere: this run measured the generator alone." : how[run.verified]), byModel(), el("details", {}, el("summary", {}, "every class, and what it means"), table(["class", "messages", "meaning"], rows, [2])),
    examples.length ? el("details", { open: "" }, el("summary", {}, "examples (all of them are in verify_bad.csv)"), table(["class", "source", "message", "partition", "offset", "detail"], examples, [1, 3, 5], [])) : null);
}
function http() {
  if (!run.totals.connects) return null;
  const rows = Object.entries(run.answers).map(([name, n]) => [name, count(n)]);
  return el("section", {}, el("h2", {}, "What the servers answered"), el("p", {}, `${count(run.totals.acked)} messages were acknowledged, ${count(run.totals.refused)} refused; ${count(run.totals.retried)} requests were sent again, ${count(run.totals.connects)} connections opened.`), table(["requests by status, or by what went wrong", "requests"], rows, [0]));
}
function readers() {
  if (!run.readers.length) return null;
  const part = (r, name) => r.latencies.find(l => l[0] === name)[1];
  const rows = run.readers.map(r => { const a = part(r, "answer"), b = part(r, "behind"); return [r.reader, count(r.asked), ...["p50", "p99", "max"].map(p => span(a[p])), ...["p50", "p99", "max"].map(p => b.count ? span(b[p]) : "–"), { mark: r.wrong ? "bad" : "good", text: count(r.wrong) }, Object.entries(r.answers).map(([name, n]) => `${name}: ${count(n)}`).join(", ")]; });
  const examples = run.readers.flatMap(r => r.examples);
  return el("section", {}, el("h2", {}, "What the readers got"), el("p", {}, "Answers count from when a question was due. Behind: how much older the newest value in an answer was than the newest message that had been acknowledged when it was asked."),
    table(["reader", "asked", "answer p50", "p99", "max", "behind p50", "p99", "max", "wrong", "answers"], rows, [9]), examples.length ? el("details", {}, el("summary", {}, "examples"), table([""], examples.map(e => [e]), [0])) : null);
}
function aggregates() {
  if (!run.aggregates.length) return null;
  const bad = n => ({ mark: n ? "bad" : "good", text: count(n) });
  const rows = run.aggregates.map(a => [a.aggregate, a.table, count(a.keys), bad(a.missing), bad(a.surplus), bad(a.wrong), count(a.foreign)]);
  const examples = run.aggregates.flatMap(a => a.examples);
  return el("section", {}, el("h2", {}, "What was added up"), el("p", {}, "The truth of each key follows from the messages that were acknowledged."),
    table(["aggregate", "table", "keys", "messages missing", "too many", "values wrong", "keys of others"], rows, [1]), examples.length ? el("details", { open: "" }, el("summary", {}, "examples"), table([""], examples.map(e => [e]), [0])) : null);
}
function byModel() {
  const bad = ["lost", "duplicated", "corrupted", "reordered"], columns = ["sent", "acked", "stored", "dead_letters", ...bad, "foreign"];
  const row = (name, v) => [name, ...columns.map(c => bad.includes(c) ? { mark: v[c] ? "bad" : "good", text: count(v[c]) } : count(v[c]))];
  return table(["model", ...columns.map(c => c.replace("_", " "))], [...run.models.map(m => row(m.model, m.verification)), row("all", run.verification)]);
}
function use() {
  return el("section", {}, el("h2", {}, "Which resource was at its limit"), el("p", {}, "Utilization, saturation and errors of the steady phase."), table(["resource", "utilization", "saturation", "errors"], data.use, [1, 2, 3]));
}
function facts() {
  const pairs = list => table(["", ""], list.map(([k, v]) => [k, v]), [1]);
  const config = Object.entries(run.config).map(([k, v]) => [k, typeof v === "object" ? JSON.stringify(v) : v]);
  return el("section", {}, el("h2", {}, "How it was measured"), el("p", {}, `configuration ${run.config_hash}; runs with the same number can be compared`),
    el("details", {}, el("summary", {}, "configuration"), pairs(config)), el("details", {}, el("summary", {}, "machine and versions"), pairs([...run.machine, ...run.versions])),
    el("details", {}, el("summary", {}, "PostgreSQL's settings"), pairs(run.postgres)), el("details", {}, el("summary", {}, "all results"), pairs(Object.entries(results).map(([k, v]) => [k, +v.toFixed(3)]))));
}
const s = data.series, x = data.seconds;
document.querySelector("main").append(...[head(), tiles(),
  chart("Rate", "Messages a second: what was due, what Kafka acknowledged, and what appeared in the tables. Shaded: warm-up and drain.", x, [{ name: "offered", values: s.offered_rate, color: 5 }, { name: "acknowledged", values: s.acked_rate, color: 1 }, { name: "stored", values: s.stored_rate, color: 0 }]),
  chart("Backlog", "Messages that Kafka has and the tables do not have yet. It must not grow.", x, [{ name: "backlog", values: s.backlog, color: 0 }]),
  chart("Latency over time", "Until a row could be read (visible), from the moment its message was due.", x, [{ name: "p50", values: s.visible_p50_us, color: 0 }, { name: "p99", values: s.visible_p99_us, color: 1 }, { name: "max", values: s.visible_max_us, color: 4 }, { name: "Kafka's acknowledgement, p99", values: s.ack_p99_us, color: 5 }], { log: true, format: span }),
  heat(), spectrum(), latencies(), http(), readers(), verification(), aggregates(),
  chart("CPU", "In percent of one core for the consumer, of the whole machine for the host.", x, [{ name: "consumer", values: s.process_cpu_percent, color: 0 }, { name: "host", values: s.host_cpu_percent, color: 5 }], { format: v => `${short(v)} %` }),
  chart("Memory", "The consumer's resident memory.", x, [{ name: "resident", values: s.process_resident_memory_bytes, color: 0 }], { format: v => `${short(v / 1e6)} MB` }),
  chart("Writing", "Bytes a second: to the machine's disks, to PostgreSQL's log, by the consumer.", x, [{ name: "disks", values: s.disk_written, color: 5 }, { name: "PostgreSQL's log (WAL)", values: s.wal_written, color: 1 }, { name: "consumer", values: s.process_written, color: 0 }], { format: v => `${short(v / 1e6)} MB` }),
  chart("Waiting", "Share of time in which somebody on the machine waited for the CPU, the disk or memory.", x, [{ name: "CPU", values: s.pressure_cpu, color: 0 }, { name: "disk", values: s.pressure_io, color: 1 }, { name: "memory", values: s.pressure_memory, color: 3 }], { format: v => `${short(v)} %` }),
  use(), facts()].filter(Boolean));
const redraw = () => redraws.forEach(f => f());
redraw(); addEventListener("resize", redraw);
