"use strict";
(function () {
  const panels = JSON.parse(document.getElementById("figure-data").textContent);
  const plots = Array.from(document.querySelectorAll("[data-panel]"));
  const dark = window.matchMedia("(prefers-color-scheme: dark)");
  const printing = window.matchMedia("print");
  // RdBu, its centre the colour of the page
  const light = [[0, "#67001f"], [0.1, "#b2182b"], [0.2, "#d6604d"], [0.3, "#f4a582"], [0.4, "#fddbc7"], [0.5, "#f7f6f4"],
    [0.6, "#d1e5f0"], [0.7, "#92c5de"], [0.8, "#4393c3"], [0.9, "#2166ac"], [1, "#053061"]];
  const night = [[0, "#ffb199"], [0.15, "#ee7a62"], [0.3, "#b5372f"], [0.42, "#5a2527"], [0.5, "#22252a"],
    [0.58, "#1d3a55"], [0.7, "#2a6ba6"], [0.85, "#5aa7e0"], [1, "#b5dcff"]];
  const lines = ["#2166ac", "#b2182b", "#4d7f3a", "#8a5a9c", "#b8762a", "#3b8686"];
  const linesNight = ["#6fb1ea", "#ef8a76", "#93c47d", "#c39bd3", "#e5b066", "#76c7c0"];
  let metric = null;

  function theme() {
    const style = getComputedStyle(document.documentElement);
    const get = (name) => style.getPropertyValue(name).trim();
    const isDark = dark.matches && !printing.matches;
    return { ink: get("--ink"), soft: get("--soft"), rule: get("--rule"), hair: get("--hair"), card: get("--card"), paper: get("--paper"),
      cut: get("--cut"), hatch: get("--hatch"), sans: get("--sans"), scale: isDark ? night : light, lines: isDark ? linesNight : lines };
  }
  // as in the text of the page: thousands set apart, a true minus sign
  function grouped(text) {
    const parts = text.split(".");
    return [parts[0].replace(/\B(?=(\d{3})+$)/g, "\u202f")].concat(parts.slice(1)).join(".").replace("-", "−");
  }
  function plain(x, digits) {
    if (x === null || x === undefined) { return "–"; }
    const size = Math.abs(x);
    const text = size !== 0 && (size < 1e-4 || size >= 1e6) ? x.toExponential(2) : String(Number(x.toPrecision(digits || 3)));
    return text.includes("e") ? text.replace("-", "−") : grouped(text);
  }
  function value(x, v) {
    if (x === null) { return "–"; }
    if (v.unit === "%") { const y = 100 * x; return (Math.abs(y) < 9.95 ? y.toFixed(1) : y.toFixed(0)).replace("-", "−") + "\u202f%"; }
    return plain(x) + (v.unit ? " " + v.unit : "");
  }
  function hover(v, i, j, name) {
    const head = "<b>" + name + "</b><br>";
    if (v.cut[i][j]) { return head + "by construction (cut): " + value(v.shown[i][j], v) + "<br>no finding, not tested"; }
    if (v.shown[i][j] === null) { return head + "no estimate"; }
    const p = v.p[i][j];
    return head + v.quantity + " " + value(v.shown[i][j], v) + "<br>interval " + value(v.low[i][j], v) + " to " + value(v.high[i][j], v)
      + "<br>adjusted p " + (p === null ? "–" : p < 1e-4 ? "&lt; 0.0001" : plain(p, 2)) + "<br>n = " + plain(v.n[i][j], 9)
      + (v.detected[i][j] ? "<br>detected" : "<br>not detected");
  }
  function place(panel, i, j) {
    const row = panel.rowTitle === "Head" ? "head " + panel.rows[i] : panel.rowTitle === "Position" ? "position " + panel.rows[i] : panel.rows[i];
    return panel.kind === "places" ? panel.rows[i] : "layer " + panel.columns[j] + ", " + row;
  }
  function axisTitle(v) { return v.quantity.charAt(0).toUpperCase() + v.quantity.slice(1) + ", " + v.metric + (v.unit ? " (" + v.unit + ")" : ""); }
  function frame(t) { return { showline: true, mirror: true, linecolor: t.rule, linewidth: 1 }; }
  function base(t, height) {
    return { height: height, paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", dragmode: false, hovermode: "closest",
      font: { family: t.sans, size: 12, color: t.ink }, showlegend: false,
      hoverlabel: { bgcolor: t.card, bordercolor: t.rule, align: "left", font: { family: t.sans, size: 12, color: t.ink } } };
  }
  function ticks(labels, width) {
    const step = Math.max(1, Math.ceil(labels.length / Math.max(2, Math.floor(width))));
    const at = labels.map((_, i) => i).filter((i) => i % step === 0);
    return { tickmode: "array", tickvals: at, ticktext: at.map((i) => labels[i]) };
  }
  function longest(labels) { return labels.reduce((most, label) => Math.max(most, label.replace(/&[a-z]+;/g, "x").length), 1); }

  // parallel lines at 45 degrees over a cell of so many pixels, clipped to it; in parts of the cell
  function hatch(w, h) {
    const out = [];
    for (let k = -h + 4; k < w; k += 7) {
      const from = Math.max(k, 0), to = Math.min(k + h, w);
      if (to > from) { out.push([from / w, (from - k) / h, to / w, (to - k) / h]); }
    }
    return out;
  }
  function heatmap(panel, v, t, width) {
    const rows = panel.rows.length, columns = panel.columns.length;
    const z = v.shown.map((r, i) => r.map((x, j) => (v.cut[i][j] ? null : x === null ? null : x * v.scale)));
    const text = v.shown.map((r, i) => r.map((_, j) => hover(v, i, j, place(panel, i, j))));
    const x = panel.columns.map((_, j) => j), y = panel.rows.map((_, i) => i);
    const limit = v.limit * v.scale;
    const labels = width < 450 ? panel.shortRows : panel.rows;
    const gap = columns * rows > 1500 ? 0 : 1;
    const left = Math.min(210, (panel.rowTitle === "Head" ? 40 : 14) + 6.6 * longest(labels));
    const traces = [{ type: "heatmap", x: x, y: y, z: z, text: text, hoverinfo: "text", zmin: -limit, zmax: limit, colorscale: t.scale, xgap: gap, ygap: gap,
      hoverongaps: false, colorbar: { thickness: 9, outlinewidth: 0, len: 1, y: 0.5, ticks: "outside", ticklen: 3, tickcolor: t.rule, nticks: 5, ticksuffix: v.unit === "%" ? "\u202f%" : "",
        tickfont: { color: t.soft, size: 11 } } }];
    const cell = rows > 60 ? 9 : rows > 24 ? 16 : 26;
    const wanted = Math.max(width, left + 64 + (columns > 40 ? 9 : 14) * columns);
    const cellWidth = (wanted - left - 64) / columns;
    if (rows < 5) {
      Object.assign(traces[0].colorbar, { tickmode: "array", tickvals: [-limit, 0, limit], ticktext: [-limit, 0, limit].map((x) => (v.unit === "%" ? Math.round(x) + "\u202f%" : plain(x, 2)).replace("-", "−")), ticksuffix: "" });
    }
    const hx = [], hy = [], cx = [], cy = [], ctext = [], dx = [], dy = [], dc = [];
    for (let i = 0; i < rows; i++) {
      for (let j = 0; j < columns; j++) {
        if (v.cut[i][j]) {
          cx.push(j); cy.push(i); ctext.push(text[i][j]);
          hatch(cellWidth, cell).forEach(function (s) {
            hx.push(j - 0.5 + s[0], j - 0.5 + s[2], null); hy.push(i + 0.5 - s[1], i + 0.5 - s[3], null);
          });
        } else if (v.detected[i][j]) {
          dx.push(j); dy.push(i); dc.push(Math.abs(z[i][j]) > 0.55 * limit ? (t.scale === night ? "#111" : "#fff") : t.ink);
        }
      }
    }
    if (cx.length) {
      const grey = v.cut.map((r) => r.map((c) => (c ? 1 : null)));
      traces.push({ type: "heatmap", x: x, y: y, z: grey, text: text, hoverinfo: "text", showscale: false, colorscale: [[0, t.cut], [1, t.cut]], xgap: gap, ygap: gap, hoverongaps: false });
      traces.push({ type: "scatter", mode: "lines", x: hx, y: hy, line: { color: t.hatch, width: 1 }, hoverinfo: "skip" });
    }
    if (dx.length) {
      traces.push({ type: "scatter", mode: "markers", x: dx, y: dy, marker: { size: rows > 40 ? 3 : 5, color: dc }, hoverinfo: "skip" });
    }
    const layout = base(t, 56 + cell * rows + (rows < 4 ? 26 : 0));
    layout.width = wanted;
    layout.margin = { l: left, r: 64, t: 10, b: 44 };
    layout.xaxis = Object.assign({ title: { text: panel.columnTitle, standoff: 8, font: { color: t.soft, size: 12 } }, range: [-0.5, columns - 0.5], fixedrange: true, showgrid: false, zeroline: false, ticks: "", tickangle: 0 }, frame(t),
      ticks(panel.columns, (wanted - left - 90) / (9 * Math.max(2, longest(panel.columns)))));
    layout.yaxis = Object.assign({ title: panel.rowTitle === "Head" ? { text: "Head", standoff: 6, font: { color: t.soft, size: 12 } } : undefined, range: [rows - 0.5, -0.5], fixedrange: true, showgrid: false, zeroline: false, ticks: "outside", ticklen: 5, tickcolor: "rgba(0,0,0,0)" }, frame(t),
      ticks(labels, (cell * rows) / 14));
    return { data: traces, layout: layout };
  }

  function fade(hex, alpha) {
    const n = parseInt(hex.slice(1), 16);
    return "rgba(" + (n >> 16) + "," + ((n >> 8) & 255) + "," + (n & 255) + "," + alpha + ")";
  }
  function profile(panel, v, t, width) {
    const x = panel.columns.map((_, j) => j), traces = [];
    panel.rows.forEach(function (name, i) {
      const colour = t.lines[i % t.lines.length], at = (m, j) => (v.cut[i][j] || m[i][j] === null ? null : m[i][j] * v.scale);
      const known = x.filter((j) => at(v.low, j) !== null && at(v.high, j) !== null);
      traces.push({ type: "scatter", mode: "lines", x: known.concat(known.slice().reverse()), y: known.map((j) => at(v.high, j)).concat(known.slice().reverse().map((j) => at(v.low, j))),
        fill: "toself", fillcolor: fade(colour, 0.16), line: { width: 0 }, hoverinfo: "skip", showlegend: false });
      traces.push({ type: "scatter", mode: "lines+markers", x: x, y: x.map((j) => at(v.shown, j)), name: name, text: x.map((j) => hover(v, i, j, place(panel, i, j))), hoverinfo: "text", line: { color: colour, width: 1.8 },
        marker: { size: 7, color: x.map((j) => (v.detected[i][j] ? colour : t.paper)), line: { color: colour, width: 1.5 } } });
      const cuts = x.filter((j) => v.cut[i][j] && v.shown[i][j] !== null);
      if (cuts.length) {
        traces.push({ type: "scatter", mode: "markers", x: cuts, y: cuts.map((j) => v.shown[i][j] * v.scale), text: cuts.map((j) => hover(v, i, j, place(panel, i, j))), hoverinfo: "text",
          marker: { symbol: "x-thin", size: 9, line: { color: t.hatch, width: 2 } }, showlegend: false });
      }
    });
    const layout = base(t, 330 + (width < 560 ? 18 * panel.rows.length : 0));
    layout.width = Math.max(width, 60 + 12 * panel.columns.length);
    layout.showlegend = true;
    layout.legend = { orientation: "h", x: 0, y: 1.02, yanchor: "bottom", font: { size: 12 }, bgcolor: "rgba(0,0,0,0)" };
    layout.margin = { l: 62, r: 16, t: 16, b: 44 };
    layout.xaxis = Object.assign({ title: { text: "Layer", standoff: 8, font: { color: t.soft, size: 12 } }, range: [-0.3, panel.columns.length - 0.7], fixedrange: true, showgrid: false, zeroline: false }, ticks(panel.columns, layout.width / 30));
    layout.yaxis = { title: { text: axisTitle(v), standoff: 8, font: { color: t.soft, size: 12 } }, fixedrange: true, gridcolor: t.hair, zeroline: true, zerolinecolor: t.soft, zerolinewidth: 1, nticks: 6 };
    return { data: traces, layout: layout };
  }

  function places(panel, v, t, width) {
    const rows = panel.rows.length, traces = [], narrow = width < 560;
    const colour = t.lines[0], open = [], cuts = [];
    panel.rows.forEach((_, i) => { if (v.shown[i][0] !== null) { (v.cut[i][0] ? cuts : open).push(i); } });
    const val = (m, i) => (m[i][0] === null ? null : m[i][0] * v.scale);
    traces.push({ type: "scatter", mode: "markers", x: open.map((i) => val(v.shown, i)), y: open, text: open.map((i) => hover(v, i, 0, panel.rows[i])), hoverinfo: "text",
      error_x: { type: "data", symmetric: false, array: open.map((i) => Math.max(0, val(v.high, i) - val(v.shown, i))), arrayminus: open.map((i) => Math.max(0, val(v.shown, i) - val(v.low, i))), color: colour, thickness: 1.6, width: 4 },
      marker: { size: 9, color: open.map((i) => (v.detected[i][0] ? colour : t.paper)), line: { color: colour, width: 1.6 } } });
    traces.push({ type: "scatter", mode: narrow ? "markers" : "markers+text", x: cuts.map((i) => val(v.shown, i)), y: cuts, text: cuts.map(() => "by construction"), textposition: "middle left", textfont: { color: t.soft, size: 11 },
      hovertext: cuts.map((i) => hover(v, i, 0, panel.rows[i])), hoverinfo: "text", marker: { symbol: "x-thin", size: 10, line: { color: t.hatch, width: 2 } } });
    const left = narrow ? 14 : Math.min(340, 20 + 6.8 * longest(panel.rows));
    const layout = base(t, 70 + 34 * rows);
    layout.width = width;
    layout.margin = { l: left, r: 24, t: 12, b: 46 };
    layout.xaxis = { title: { text: axisTitle(v), standoff: 8, font: { color: t.soft, size: 12 } }, fixedrange: true, gridcolor: t.hair, zeroline: true, zerolinecolor: t.soft, rangemode: "tozero" };
    layout.yaxis = { range: [rows - 0.4, narrow ? -0.8 : -0.6], fixedrange: true, showgrid: false, zeroline: false, ticks: "outside", ticklen: 6, tickcolor: "rgba(0,0,0,0)", showticklabels: !narrow, tickmode: "array", tickvals: panel.rows.map((_, i) => i), ticktext: panel.rows };
    if (narrow) {
      layout.annotations = panel.rows.map((name, i) => ({ x: 0, xref: "paper", y: i - 0.38, xanchor: "left", yanchor: "middle", text: name, showarrow: false, font: { size: 11, color: t.ink } }));
    }
    return { data: traces, layout: layout };
  }

  const makers = { heatmap: heatmap, profile: profile, places: places };
  function draw(node) {
    const panel = panels[node.dataset.panel];
    const v = panel.metrics[metric] || panel.metrics[Object.keys(panel.metrics)[0]];
    const figure = makers[panel.kind](panel, v, theme(), Math.max(280, node.parentElement.clientWidth));
    Plotly.react(node, figure.data, figure.layout, { displayModeBar: false, scrollZoom: false, doubleClick: false });
  }
  // a figure is drawn when it comes near the window: a page of many sweeps opens at once
  const near = "IntersectionObserver" in window ? new IntersectionObserver(function (entries) {
    entries.forEach(function (entry) { if (entry.isIntersecting) { near.unobserve(entry.target); entry.target.dataset.drawn = "1"; draw(entry.target); } });
  }, { rootMargin: "800px" }) : null;
  function redraw(all) { plots.forEach(function (node) { if (all || node.dataset.drawn) { node.dataset.drawn = "1"; draw(node); } }); }
  plots.forEach(function (node) {
    const panel = panels[node.dataset.panel];
    const rows = panel.rows.length;
    node.style.minHeight = (panel.kind === "profile" ? 330 : panel.kind === "places" ? 70 + 34 * rows : 56 + (rows > 60 ? 9 : rows > 24 ? 16 : 26) * rows) + "px";
    if (near) { near.observe(node); } else { node.dataset.drawn = "1"; draw(node); }
  });
  let width = window.innerWidth;
  window.addEventListener("resize", function () {
    if (window.innerWidth !== width) { width = window.innerWidth; window.requestAnimationFrame(function () { redraw(false); }); }
  });
  dark.addEventListener("change", function () { redraw(false); });
  window.addEventListener("beforeprint", function () { redraw(true); });
  window.addEventListener("afterprint", function () { redraw(false); });
  document.querySelectorAll("[data-save]").forEach(function (button) {
    button.addEventListener("click", function () {
      const node = plots.find((plot) => plot.dataset.panel === button.dataset.save);
      const size = node.getBoundingClientRect();
      Plotly.downloadImage(node, { format: "svg", filename: button.dataset.save, width: size.width, height: size.height });
    });
  });
  document.querySelectorAll("[data-metric]").forEach(function (button) {
    button.addEventListener("click", function () {
      metric = button.dataset.metric;
      document.querySelectorAll("[data-metric]").forEach(function (other) { other.setAttribute("aria-pressed", String(other === button)); });
      redraw(false);
    });
  });

  // tables: search, sort, pages
  document.querySelectorAll("table[data-page]").forEach(function (table) {
    const body = table.tBodies[0], size = Number(table.dataset.page);
    let rows = Array.from(body.rows), page = 0, words = "";
    const pager = document.querySelector('[data-pager="' + table.id + '"]');
    const search = document.querySelector('[data-search="' + table.id + '"]');
    const texts = new Map(rows.map((row) => [row, row.textContent.toLowerCase()]));
    function show() {
      const found = rows.filter((row) => texts.get(row).includes(words));
      const paged = rows.length > 200;
      const last = paged ? Math.max(0, Math.ceil(found.length / size) - 1) : 0;
      page = Math.min(page, last);
      const visible = new Set(paged ? found.slice(page * size, (page + 1) * size) : found);
      rows.forEach(function (row) { row.hidden = !visible.has(row); });
      if (!pager) { return; }
      pager.hidden = !paged && !words;
      pager.querySelector("span").textContent = grouped(String(found.length)) + (found.length === 1 ? " pair" : " pairs") + (paged ? ", page " + (page + 1) + " of " + (last + 1) : "");
      pager.querySelectorAll("button").forEach(function (button) {
        button.hidden = !paged;
        button.disabled = Number(button.dataset.step) < 0 ? page === 0 : page === last;
      });
    }
    if (search) { search.addEventListener("input", function () { words = search.value.toLowerCase(); page = 0; show(); }); }
    if (pager) { pager.addEventListener("click", function (event) { const step = Number(event.target.dataset.step || 0); if (step) { page = Math.max(0, page + step); show(); } }); }
    const key = (row, column) => { const text = row.cells[column].textContent.replace(/−/g, "-").replace(/\s/g, " ").trim(); const x = Number(text.replace(/[ %]/g, "")); return text !== "" && !Number.isNaN(x) ? x : text.toLowerCase(); };
    const compare = (a, b) => (typeof a === typeof b ? (a < b ? -1 : a > b ? 1 : 0) : typeof a === "number" ? -1 : 1);
    let column = 0;
    Array.from(table.tHead.querySelectorAll("th")).filter((head) => head.colSpan === 1).sort((a, b) => a.parentElement.rowIndex - b.parentElement.rowIndex).forEach(function (head) {
      const mine = column++, button = document.createElement("button");
      button.type = "button";
      button.append(...Array.from(head.childNodes));
      head.append(button);
      button.addEventListener("click", function () {
        const down = head.getAttribute("aria-sort") === "ascending";
        table.tHead.querySelectorAll("th").forEach(function (other) { other.removeAttribute("aria-sort"); });
        head.setAttribute("aria-sort", down ? "descending" : "ascending");
        rows = rows.map((row, i) => [key(row, mine), i, row]).sort((a, b) => (down ? -1 : 1) * compare(a[0], b[0]) || a[1] - b[1]).map((item) => item[2]);
        body.append(...rows);
        page = 0; show();
      });
    });
    show();
  });
})();
