"use strict";
// What a page asks for again while it is open, and the one thing that it writes.
(() => {
  const seen = new Map();  // id of an element that is asked for again -> the server's last word on it

  const fetched = async (address) => {
    const answer = await fetch(address);
    return new DOMParser().parseFromString(await answer.text(), "text/html");
  };
  const put = (fresh, old) => {
    const node = document.adoptNode(fresh);
    old.replaceWith(node);
    begin(node);
  };

  // An element with data-again is asked for anew after so many milliseconds, where data-from says or at this address.
  const wait = (element) => setTimeout(() => renew(element.id), Number(element.dataset.again));
  const renew = async (id) => {
    const old = document.getElementById(id);
    if (!old) return;
    let page;
    try { page = await fetched(old.dataset.from || location.href); } catch {
      if (old.dataset.again) wait(old);  // the server is away: perhaps it comes back
      return;
    }
    const fresh = page.getElementById(id);
    const main = document.getElementById("main");
    if (!fresh) { location.reload(); return; }  // another page by now
    if (fresh.outerHTML !== seen.get(id)) put(fresh, old);  // what is read aloud when it changes is else left alone
    else if (old.dataset.again) wait(old);
    const other = old.dataset.again && document.getElementById(fresh.dataset.with);  // shows more now that this is there
    if (other) put(page.getElementById(other.id), other);
    if (id === "growing" && fresh.dataset.stamp !== main.dataset.stamp) await outdated(main);
  };
  // The run has written more than this page shows. Nobody's place on a page is lost for that: only the overview follows.
  const outdated = async (main) => {
    if (location.pathname === "/" && !main.contains(document.activeElement)) {
      put((await fetched(location.href)).getElementById("main"), main);
    } else document.querySelector("#growing .latest").hidden = false;
  };

  // What the reader says of a label. The token that the server asks for travels in a header, which no other site can set.
  const author = () => document.getElementById("author");
  const controls = () => [...document.querySelectorAll("#people button, #people input")];
  const say = async (kind, label, control) => {
    const token = document.querySelector("meta[name=token]").content;
    const body = JSON.stringify({
      feature_id: JSON.parse(document.querySelector("form.say").dataset.feature), kind, label, author: author().value,
    });
    let kept = false, said = "The server is away: nothing was kept.";
    try {
      const answer = await fetch("/say", { method: "POST", headers: { "x-autointerp-token": token }, body });
      kept = answer.ok;
      said = kept ? "Kept." : await answer.text();
    } catch { /* it is away */ }
    if (kept) {
      const place = controls().indexOf(control);
      try { localStorage.setItem("autointerp-author", author().value); } catch { /* typed again next time */ }
      await renew("people");
      (kind === "label" ? document.getElementById("own") : controls()[place])?.focus();
    }
    const status = document.getElementById("kept");
    status.textContent = said;
    status.classList.toggle("problem", !kept);
  };
  const people = () => {
    const form = document.querySelector("form.say");
    try { author().value = localStorage.getItem("autointerp-author") || ""; } catch { /* stays empty */ }
    for (const control of controls()) control.disabled = false;
    for (const button of document.querySelectorAll("#people .vote")) {
      button.addEventListener("click", () => say(button.dataset.kind, JSON.parse(button.dataset.label), button));
    }
    form.addEventListener("submit", (event) => {
      event.preventDefault();
      say("label", document.getElementById("own").value, document.getElementById("own"));
    });
  };

  const begin = (within) => {
    for (const element of [within, ...within.querySelectorAll("[data-again]")]) {
      if (element.id) seen.set(element.id, element.outerHTML);
      if (element.dataset.again) wait(element);
    }
    if (within.id === "people" || within.querySelector("#people")) people();
  };
  begin(document.body);
})();
