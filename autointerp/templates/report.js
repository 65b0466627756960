"use strict";
(() => {
  const table = document.getElementById("features");
  if (!table) return;
  const groups = [...table.tBodies];
  const toggle = (group, open) => {
    group.classList.toggle("open", open);
    group.querySelector("button.more").setAttribute("aria-expanded", String(open));
  };
  for (const group of groups) {
    toggle(group, false);
    const button = group.querySelector("button.more");
    group.rows[0].addEventListener("click", (event) => {
      if (event.target.closest("button") !== button && getSelection().toString()) return;
      toggle(group, !group.classList.contains("open"));
    });
  }
  // Numbers sort largest first at the first press, words from A; what has no value stays at the end.
  for (const header of table.tHead.rows[0].cells) {
    const button = header.querySelector("button");
    if (!button) continue;
    button.addEventListener("click", () => {
      const words = button.dataset.type === "text";
      const before = header.getAttribute("aria-sort");
      const down = before ? before === "ascending" : !words;
      for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
      header.setAttribute("aria-sort", down ? "descending" : "ascending");
      const value = (group) => group.rows[0].cells[header.cellIndex].dataset.value;
      groups.sort((a, b) => {
        const x = value(a), y = value(b);
        if (x === "" || y === "") return (x === "") - (y === "");
        return (down ? -1 : 1) * (words ? x.localeCompare(y) : Number(x) - Number(y));
      });
      table.append(...groups);
    });
  }
  const filter = document.getElementById("filter"), beats = document.getElementById("beats");
  const verdict = document.getElementById("verdict");
  const count = document.getElementById("count");
  const apply = () => {
    const wanted = filter.value.toLowerCase().split(/\s+/).filter(Boolean);
    let shown = 0;
    for (const group of groups) {
      const text = group.dataset.text.toLowerCase();
      const keep = wanted.every((word) => text.includes(word)) && (!beats.checked || "beats" in group.dataset)
        && (!verdict.value || group.dataset.verdict === verdict.value);
      group.hidden = !keep;
      shown += keep;
    }
    count.textContent = `${shown} of ${groups.length} features`;
  };
  filter.addEventListener("input", apply);
  beats.addEventListener("change", apply);
  verdict.addEventListener("change", apply);
  apply();
  document.getElementById("tools").hidden = false;
  document.documentElement.classList.add("js");
})();
