// The dashboard: draws what /events tells, asks /explain what would be planned, and /v2 about an image.

const ANSWERS_KEPT = 120;
const LOG_KEPT = 100;
const SVG = "http://www.w3.org/2000/svg";

const at = (id) => document.getElementById(id);
const ms = (value) => value.toFixed(value >= 100 ? 0 : value >= 1 ? 1 : 2) + " ms";
const percent = (share) => (100 * share).toFixed(1) + " %";

function element(name, attributes = {}, text = "") {
  const made = document.createElement(name);
  Object.entries(attributes).forEach(([key, value]) => made.setAttribute(key, value));
  made.textContent = text;
  return made;
}

function shape(svg, name, attributes, text = "") {
  const made = document.createElementNS(SVG, name);
  Object.entries(attributes).forEach(([key, value]) => made.setAttribute(key, value));
  made.textContent = text;
  svg.append(made);
  return made;
}

function rate(bps) {
  if (bps >= 1e9) return (bps / 1e9).toFixed(1) + " Gbit/s";
  if (bps >= 1e6) return (bps / 1e6).toFixed(1) + " Mbit/s";
  return (bps / 1e3).toFixed(0) + " kbit/s";
}

const where = { "device-only": "the device alone", "edge-only": "the edge alone", split: "both" };
const shade = { "device-only": "device", "edge-only": "edge", split: "split" };

let network = null; // what is served: /network
let last = null; // the last of /events
let answers = [];
let wanted = null; // the bandwidth of the slider; none: as it is
let size = null; // of an image that the model takes: [channels, height, width]

function log(text, kind = "") {
  const entry = element("li", { class: kind });
  entry.append(element("time", {}, new Date().toLocaleTimeString()), text);
  if (!last || at("log").dataset.empty !== "no") at("log").replaceChildren();
  at("log").dataset.empty = "no";
  at("log").prepend(entry);
  while (at("log").children.length > LOG_KEPT) at("log").lastChild.remove();
}

// The trunk is the longest way to an exit; the others branch off it.
function drawChain(plan) {
  const svg = at("chain");
  svg.replaceChildren();
  if (!network) return;
  const trunk = network.exits.map((exit) => exit.path).reduce((a, b) => (b.length >= a.length ? b : a), []);
  const narrow = svg.clientWidth > 0 && svg.clientWidth < 500;
  const [width, top, high] = [narrow ? 400 : 1000, 26, 34];
  svg.setAttribute("viewBox", `0 0 ${width} 118`);
  const [left, step] = [10, (width - 20) / Math.max(trunk.length, 1)];
  const chosen = plan ? network.exits[plan.exit] : null;
  const runs = (position, segment) => {
    if (!plan) return last && last.role === "edge" ? "edge" : "device";
    if (chosen.path[position] !== segment) return "idle";
    const first = plan.direction === "device-first" ? ["device", "edge"] : ["edge", "device"];
    return position < plan.cut ? first[0] : first[1];
  };
  trunk.forEach((segment, position) => {
    const x = left + position * step;
    const box = { x, y: top, width: Math.max(step - 2, 1), height: high, rx: 2, class: runs(position, segment) };
    shape(shape(svg, "rect", box), "title", {}, network.segments[segment].name);
  });
  // Who runs them is said in words, too.
  trunk.map((segment, position) => runs(position, segment)).forEach((who, position, all) => {
    if (who === "idle" || all[position - 1] === who) return;
    const count = all.lastIndexOf(who) - position + 1;
    const text = count * step > 50 ? who : who[0];
    shape(svg, "text", { x: left + (position + count / 2) * step, y: top + high / 2 + 4, "text-anchor": "middle", class: "who" }, text);
  });
  network.exits.forEach((exit, index) => {
    const shared = exit.path.findIndex((segment, position) => segment !== trunk[position]);
    const x = Math.min(left + (shared < 0 ? trunk.length : shared) * step, width - 14);
    const taken = plan && plan.exit === index ? " taken" : "";
    shape(svg, "line", { x1: x, y1: top + high, x2: x, y2: top + high + 18, class: "axis" });
    shape(svg, "circle", { cx: x, cy: top + high + 24, r: 6, class: "exit" + taken });
    const anchor = x > width - 40 ? "end" : x < 40 ? "start" : "middle";
    const label = narrow ? String(index + 1) : exit.name;
    shape(svg, "text", { x, y: top + high + 44, "text-anchor": anchor, class: taken }, label);
    if (!narrow) shape(svg, "text", { x, y: top + high + 56, "text-anchor": anchor, class: taken }, percent(exit.accuracy));
  });
  if (plan && plan.placement === "split") {
    const x = left + plan.cut * step - 1;
    shape(svg, "line", { x1: x, y1: top - 8, x2: x, y2: top + high + 6, class: "cut" });
    shape(svg, "text", { x, y: top - 12, "text-anchor": x < 60 ? "start" : x > width - 60 ? "end" : "middle" }, `cut ${plan.cut}, ${plan.codec}`);
  }
}

function drawLatency() {
  const svg = at("latency");
  const narrow = svg.clientWidth > 0 && svg.clientWidth < 420;
  const [width, height, left, bottom] = [narrow ? 320 : 460, 190, 44, 168];
  svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
  svg.replaceChildren();
  if (!answers.length) {
    shape(svg, "text", { x: left, y: 90 }, "no answers yet");
    return;
  }
  const deadline = last.deadline_ms;
  const most = Math.max(deadline * 1.25, ...answers.map((answer) => answer.latency_ms));
  const y = (value) => bottom - (value / most) * (bottom - 14);
  const step = (width - left - 8) / ANSWERS_KEPT;
  [0, most / 2, most].forEach((value) => {
    shape(svg, "line", { x1: left, y1: y(value), x2: width, y2: y(value), class: "axis" });
    shape(svg, "text", { x: left - 4, y: y(value) + 4, "text-anchor": "end" }, value.toFixed(value < 10 ? 1 : 0));
  });
  shape(svg, "line", { x1: left, y1: y(deadline), x2: width, y2: y(deadline), class: "deadline" });
  shape(svg, "text", { x: width - 2, y: y(deadline) - 4, "text-anchor": "end" }, "deadline " + ms(deadline));
  answers.forEach((answer, index) => {
    const x = left + 4 + index * step;
    const here = y(answer.latency_ms);
    if (answer.deadline_met) {
      shape(svg, "circle", { cx: x, cy: here, r: 2.6, class: shade[answer.placement] });
    } else {
      shape(svg, "path", { d: `M${x - 4} ${here - 4}l8 8m0 -8l-8 8`, class: "late" });
    }
  });
  shape(svg, "text", { x: left, y: height - 6 }, `ms, the last ${answers.length} answers`);
}

function bars(rows) {
  return rows.map(([name, share, text]) => {
    const row = element("div", { class: "bar" });
    row.append(element("span", {}, name), element("meter", { min: 0, max: 1, value: share, title: name }), element("span", {}, text));
    return row;
  });
}

function drawExits() {
  if (!answers.length) return;
  const taken = (index) => answers.filter((answer) => answer.exit === index).length;
  at("exits").replaceChildren(...bars(network.exits.map((exit, index) => [`${exit.name}, ${percent(exit.accuracy)}`, taken(index) / answers.length, String(taken(index))])));
}

function drawNumbers() {
  const { counts, link } = last;
  const rows = [
    ["requests", counts.requests],
    ["answered in time", counts.answered ? percent(counts.deadline_met / counts.answered) : "–"],
    ["degraded", counts.degraded],
    ["without an answer", counts.errors],
    ["being answered", counts.in_flight],
    ["changes of plan", counts.plan_changes],
    ["faults of segments", counts.faults],
    ["memory", (last.memory_bytes / 1048576).toFixed(0) + " MiB"],
  ];
  if (last.role === "device") {
    rows.unshift(["link", link.rate_bps ? rate(link.rate_bps) : "unknown"], ["round trip", link.rate_bps ? ms(link.rtt_ms) : "unknown"]);
  } else {
    rows.unshift(["parts run for devices", counts.parts]);
  }
  at("numbers").replaceChildren(...rows.flatMap(([name, value]) => [element("dt", {}, name), element("dd", {}, String(value))]));
}

function tellPlan(plan) {
  if (!plan) {
    at("plan").textContent = last.role === "edge" ? "The edge runs what devices send, and whole networks for who asks it itself." : "";
    return;
  }
  const exit = network.exits[plan.exit];
  const cut = plan.placement === "split" ? `, cut ${plan.cut} as ${plan.codec}` : plan.placement === "edge-only" ? `, input as ${plan.codec}` : "";
  const predicted = plan.predicted_ms === null ? "" : `; predicted ${ms(plan.predicted_ms)}, in time with a likelihood of ${percent(plan.in_time)}`;
  at("plan").textContent = `${exit.name} (accuracy ${percent(exit.accuracy)}) by ${where[plan.placement]}${cut}${predicted}.`;
}

function note(now) {
  if (!last) return;
  const [before, after] = [last.plan, now.plan];
  if (before && after && before.epoch !== after.epoch) {
    log(`plan: ${network.exits[after.exit].name} by ${where[after.placement]}, cut ${after.cut}, ${after.codec}`);
  }
  if (last.edge.connected !== now.edge.connected) log(now.edge.connected ? "the edge is connected" : "the edge is lost", now.edge.connected ? "good" : "bad");
  if (now.counts.faults > last.counts.faults) log(`${now.counts.faults - last.counts.faults} faults of segments`, "bad");
  if (now.counts.quarantined > last.counts.quarantined) log("a version is quarantined", "bad");
  if (now.version !== last.version) log(`version ${now.version} is in force`, "good");
}

async function follow(now) {
  const isNews = !network || now.version !== network.version;
  if (isNews) {
    network = await (await fetch("/network")).json();
    prepareUpload();
  }
  note(now);
  const fresh = answers.length ? answers[answers.length - 1].number : -1;
  answers = answers.concat(now.answers.filter((answer) => answer.number > fresh)).slice(-ANSWERS_KEPT);
  last = now;
  at("title").textContent = `Edgent: ${now.role}`;
  at("about").textContent = `${now.model}, version ${now.version.replace(/^sha256:(.{12}).*/, "$1")}; up ${Math.round(now.uptime_s)} s`;
  const alone = now.edge.configured && !now.edge.connected;
  at("state").textContent = now.ending ? "is ending" : alone ? "no edge: answers alone" : now.edge.connected ? "edge connected" : "";
  at("state").className = alone || now.ending ? "bad" : "good";
  tellPlan(now.plan);
  drawChain(now.plan);
  drawLatency();
  drawNumbers();
  drawExits();
  at("what-if").hidden = now.role !== "device";
  if (wanted === null && now.role === "device") explain();
}

async function explain() {
  const query = wanted === null ? "" : `?rate_bps=${Math.round(wanted)}`;
  const told = await (await fetch("/explain" + query)).json();
  if (told.error) return;
  at("rate-text").textContent = wanted === null ? `as it is (${told.rate_bps ? rate(told.rate_bps) : "no link"})` : rate(wanted);
  if (wanted === null && told.rate_bps) at("rate").value = Math.log10(told.rate_bps);
  const row = (plan) => {
    const cells = [
      network.exits[plan.exit].name, percent(plan.accuracy), where[plan.placement], plan.cut, plan.codec, ms(plan.device_ms),
      ms(plan.edge_ms + plan.queue_ms), ms(plan.transfer_ms + plan.rtt_ms + plan.codec_ms), ms(plan.total_ms), plan.verdict,
    ];
    const made = element("tr", { class: plan.verdict === "chosen" ? "chosen" : "" });
    made.append(...cells.map((cell) => element("td", {}, String(cell))));
    return made;
  };
  at("plans").tBodies[0].replaceChildren(...told.plans.map(row));
  const chosen = told.plans.find((plan) => plan.verdict === "chosen");
  const fits = told.fits ? "" : "; no plan is likely to be in time, this is the fastest";
  at("choice").textContent = chosen
    ? `Would take ${network.exits[chosen.exit].name} by ${where[chosen.placement]} in ${ms(chosen.total_ms)} of ${ms(told.deadline_ms)}${fits}.`
    : "";
}

function prepareUpload() {
  const [input] = network.inputs;
  const isPicture = network.inputs.length === 1 && input.datatype === "UINT8" && input.shape.length === 4 && [1, 3].includes(input.shape[1]);
  size = isPicture ? input.shape.slice(1) : null;
  at("image").disabled = !size;
  at("try-note").textContent = size
    ? `Choose an image; it is scaled to the ${size[2]} × ${size[1]} pixels that the model takes.`
    : "This model takes no picture; ask it with curl or Python.";
}

async function choose() {
  const [file] = at("image").files;
  at("ask").disabled = !file;
  if (!file) return;
  const [, height, width] = size;
  const picture = at("picture");
  [picture.width, picture.height, picture.hidden] = [width, height, false];
  const bitmap = await createImageBitmap(file);
  picture.getContext("2d").drawImage(bitmap, 0, 0, width, height);
}

async function ask() {
  const [channels, height, width] = size;
  const { data } = at("picture").getContext("2d").getImageData(0, 0, width, height);
  const pixels = new Uint8Array(channels * height * width);
  for (let pixel = 0; pixel < height * width; pixel += 1) {
    const [red, green, blue] = data.subarray(4 * pixel, 4 * pixel + 3);
    const colours = channels === 3 ? [red, green, blue] : [0.299 * red + 0.587 * green + 0.114 * blue];
    colours.forEach((value, channel) => { pixels[channel * height * width + pixel] = value; });
  }
  const deadline = Number(at("deadline").value);
  const [input] = network.inputs;
  const head = JSON.stringify({
    parameters: deadline > 0 ? { deadline_ms: deadline } : {},
    inputs: [{ name: input.name, shape: input.shape, datatype: input.datatype, parameters: { binary_data_size: pixels.length } }],
  });
  const json = new TextEncoder().encode(head);
  const answered = await fetch(`/v2/models/${encodeURIComponent(network.model)}/infer`, {
    method: "POST",
    headers: { "Inference-Header-Content-Length": String(json.length) },
    body: new Blob([json, pixels]),
  });
  const answer = await answered.json();
  if (answer.error) {
    at("answer").replaceChildren(element("p", { class: "bad" }, answer.error));
    return;
  }
  const said = answer.parameters;
  const timing = `${ms(said.latency_ms)} of ${ms(said.deadline_ms)}, at ${said.exit}, by ${where[said.placement]}` + (said.degraded ? `; degraded: ${said.degraded_because}` : "");
  const scores = answer.outputs.find((output) => output.name === "scores");
  const best = scores ? scores.data.map((score, index) => [network.classes[index], score, percent(score)]).sort((a, b) => b[1] - a[1]).slice(0, 3) : [];
  at("answer").replaceChildren(element("p", {}, said.class || "answered"), ...bars(best), element("p", { class: said.deadline_met ? "good" : "bad" }, timing));
}

at("rate").addEventListener("input", () => { wanted = 10 ** Number(at("rate").value); explain(); });
at("rate-now").addEventListener("click", () => { wanted = null; explain(); });
at("image").addEventListener("change", choose);
at("ask").addEventListener("click", ask);

const events = new EventSource("/events");
events.onmessage = (event) => follow(JSON.parse(event.data));
events.onerror = () => { at("state").textContent = "no word from the host"; at("state").className = "bad"; };
