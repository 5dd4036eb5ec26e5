"use strict";
(() => {
  const parsed = (id) => JSON.parse((document.getElementById(id) || { textContent: "{}" }).textContent);
  const charts = parsed("charts");
  const dark = parsed("dark");
  const prefersDark = window.matchMedia("(prefers-color-scheme: dark)");
  const narrow = window.matchMedia("(max-width: 40rem)");

  // "@d55e00" and "@d55e00/0.2" become the colours of the scheme.
  const coloured = (value, isDark) => {
    if (typeof value === "string") {
      const found = /^@([0-9a-f]{6})(?:\/([\d.]+))?$/.exec(value);
      if (!found) return value;
      const hex = isDark ? dark[found[1]] : found[1];
      const parts = [0, 2, 4].map((place) => parseInt(hex.slice(place, place + 2), 16));
      return `rgba(${parts.join(",")},${found[2] || 1})`;
    }
    if (Array.isArray(value)) return value.map((each) => coloured(each, isDark));
    if (value && typeof value === "object") {
      return Object.fromEntries(Object.entries(value).map(([key, each]) => [key, coloured(each, isDark)]));
    }
    return value;
  };

  const axis = (own, ink, rule) => ({
    gridcolor: rule, zeroline: false, linecolor: rule, tickcolor: rule, ticks: "outside", ticklen: 4, automargin: true,
    fixedrange: true, tickangle: 0, nticks: narrow.matches ? 5 : 0, ...own, title: { font: { size: 13 }, standoff: 8, ...(own || {}).title },
  });

  const draw = (isDark) => {
    const ink = isDark ? "#e8eaee" : "#1d2129";
    const rule = isDark ? "#343a45" : "#dfe3e8";
    const paper = isDark ? "#20242c" : "#ffffff";
    for (const [id, chart] of Object.entries(charts)) {
      const place = document.getElementById(id);
      const own = coloured(chart.layout, isDark);
      const layout = {
        ...own,
        xaxis: axis(own.xaxis, ink, rule), yaxis: axis(own.yaxis, ink, rule),
        font: { family: getComputedStyle(document.body).fontFamily, size: narrow.matches ? 12 : 13, color: ink },
        paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)",
        margin: { l: 8, r: 12, t: 8, b: 8 }, hovermode: "closest", dragmode: false,
        hoverlabel: { bgcolor: paper, bordercolor: rule, font: { color: ink, size: 13 }, align: "left" },
        legend: { orientation: "h", x: 0, y: 1.02, yanchor: "bottom", font: { size: narrow.matches ? 12 : 13 } },
      };
      Plotly.react(place, coloured(chart.data, isDark), layout, { displayModeBar: false, responsive: true });
    }
  };

  if (window.Plotly) {
    draw(prefersDark.matches);
    prefersDark.addEventListener("change", (event) => draw(event.matches));
    window.addEventListener("beforeprint", () => draw(false));
    window.addEventListener("afterprint", () => draw(prefersDark.matches));
  }

  const valueOf = (row, column) => {
    const cell = row.cells[column];
    return cell.dataset.value === undefined ? null : Number(cell.dataset.value);
  };

  // Numbers by value, with what has none at the end; the rest by their text. Numbers begin with the largest.
  const sort = (table, column, heading) => {
    const body = table.tBodies[0];
    const rows = [...body.rows];
    const numeric = rows.some((row) => valueOf(row, column) !== null);
    const before = heading.getAttribute("aria-sort");
    const ascending = before === "none" ? !numeric : before === "descending";
    const turn = ascending ? 1 : -1;
    rows.sort((a, b) => {
      if (!numeric) return turn * a.cells[column].textContent.localeCompare(b.cells[column].textContent, "en", { numeric: true });
      const [x, y] = [valueOf(a, column), valueOf(b, column)];
      if (x === null || y === null) return (x === null) - (y === null);
      return turn * (x - y);
    });
    for (const each of heading.parentElement.cells) each.setAttribute("aria-sort", "none");
    heading.setAttribute("aria-sort", ascending ? "ascending" : "descending");
    body.append(...rows);
  };

  for (const table of document.querySelectorAll("table")) {
    [...table.tHead.rows[0].cells].forEach((heading, column) => {
      heading.querySelector("button").addEventListener("click", () => sort(table, column, heading));
    });
  }

  // On paper nothing is folded away.
  let folded = [];
  window.addEventListener("beforeprint", () => {
    folded = [...document.querySelectorAll("details:not([open])")];
    folded.forEach((each) => { each.open = true; });
  });
  window.addEventListener("afterprint", () => folded.forEach((each) => { each.open = false; }));
})();
