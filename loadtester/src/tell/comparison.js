"use strict";
// Several runs: a table for one result at a time, each run relative to the best.
const runs = JSON.parse(document.getElementById("data").textContent).runs;
const el = (name, attributes = {}, ...children) => {
  const node = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
  node.append(...children);
  return node;
};
// More is better for rates; less for everything else.
const names = [...new Set(runs.flatMap(r => Object.keys(r.run.results)))].sort();
const first = ["visible_p99", "visible_p50", "visible_max", "stored_rate", "consumer_cpu_percent", "consumer_rss_bytes_max", "backlog_max", "drain_seconds"].filter(n => names.includes(n));
const choice = el("select", {}, ...[...first, ...names.filter(n => !first.includes(n))].map(n => el("option", { value: n }, n)));
const place = el("div", { class: "scroll" });
const show = (name, v) => /^(visible|row|ack|commit|schedule|ack_service)_/.test(name) && !name.endsWith("count") ? `${(v / 1000).toLocaleString("en-US", { maximumFractionDigits: 2 })} ms` : v.toLocaleString("en-US", { maximumFractionDigits: 2 });
const draw = () => {
  const name = choice.value, more = name.endsWith("_rate") || name.endsWith("_ratio");
  const known = runs.map(r => r.run.results[name]).filter(v => v !== undefined);
  const best = more ? Math.max(...known) : Math.min(...known), most = Math.max(...known) || 1;
  const rows = [...runs].sort((a, b) => (a.run.results[name] - b.run.results[name]) * (more ? -1 : 1)).map(r => {
    const v = r.run.results[name];
    const bar = el("div", { class: "bar" });
    bar.style.width = `${v === undefined ? 0 : 100 * v / most}%`;
    const times = v === undefined || !best ? "" : `× ${(more ? best / v : v / best).toFixed(2)}`;
    return el("tr", {}, el("td", {}, r.name), el("td", { class: r.run.exit === "passed" ? "good" : "bad" }, r.run.exit), el("td", {}, v === undefined ? "–" : show(name, v)), el("td", {}, times), el("td", { style: "width:40%" }, bar));
  });
  place.replaceChildren(el("table", {}, el("tr", {}, ...["run", "verdict", name, "of the best", ""].map(h => el("th", {}, h))), ...rows));
};
choice.onchange = draw;
const same = new Set(runs.map(r => r.run.config_hash)).size === 1;
document.querySelector("main").append(el("header", { class: same ? "" : "unsure" }, el("h1", {}, "Load tests compared"),
  el("p", { class: "lead" }, same ? "All of these runs had the same configuration." : "These runs did not have the same configuration: compare with care.")),
  el("section", {}, el("p", {}, "Result: ", choice), place));
draw();
