"use strict";
(() => {
  const root = document.documentElement;
  const theme = document.getElementById("theme");
  const system = matchMedia("(prefers-color-scheme: dark)");
  const dark = () => (root.dataset.theme ? root.dataset.theme === "dark" : system.matches);
  const told = () => theme.setAttribute("aria-pressed", String(dark()));
  theme.hidden = false;
  told();
  system.addEventListener("change", told);
  theme.addEventListener("click", () => {
    root.dataset.theme = dark() ? "light" : "dark";
    told();
    try { localStorage.setItem("autointerp-theme", root.dataset.theme); } catch { /* this page only */ }
  });

  // Empty fields stay out of the address, so that it says what the view is and no more.
  for (const form of document.querySelectorAll("form[role=search], form.typed")) {
    const submit = () => form.requestSubmit();
    form.addEventListener("submit", () => {
      for (const field of form.elements) {
        if (field.name && (!field.value || (field.name === "sort" && field.value === "r_rank"))) field.disabled = true;
      }
    });
    for (const field of form.matches(".typed") ? [] : form.querySelectorAll("select")) {
      field.addEventListener("change", () => {
        const order = form.elements.namedItem("order");
        if (field.name === "sort" && order) order.value = "";
        submit();
      });
    }
  }
  // A token of an attributed text is chosen, and the arrows go on from it. An address of a part of the page leads there.
  if (!location.hash) document.querySelector(".pick :checked")?.focus();
  document.addEventListener("change", (event) => {
    if (event.target.name === "at") event.target.form.requestSubmit();
  });
  addEventListener("pageshow", () => {  // back from another page: fields that were left out can be used again
    for (const field of document.querySelectorAll("form[role=search] :disabled, form.typed :disabled")) field.disabled = false;
  });

  const search = document.getElementById("q") || document.getElementById("jump");
  const step = (by) => {
    const rows = [...document.querySelectorAll("#list tbody tr .label a")];
    if (rows.length) {
      const at = rows.indexOf(document.activeElement);
      const next = at < 0 ? (by > 0 ? 0 : rows.length - 1) : at + by;
      if (rows[next]) {
        rows[next].focus();
        rows[next].closest("tr").scrollIntoView({ block: "nearest" });
        return;
      }
    }
    document.querySelector(by > 0 ? "a[rel=next]" : "a[rel=prev]")?.click();
  };
  addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    if (event.target.matches("input:not([type=radio]), select, textarea")) {
      if (event.key === "Escape") event.target.blur();
      return;
    }
    if (event.key === "j") step(1);
    else if (event.key === "k") step(-1);
    else if (event.key === "/") { event.preventDefault(); search.focus(); search.select(); }
  });
})();
