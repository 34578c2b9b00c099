// Search and filters of the gallery. Without this script every card is shown.
(() => {
  const start = () => {
    const form = document.querySelector(".poise-filters");
    if (!form) return;
    const cards = [...document.querySelectorAll(".poise-card")];
    const count = form.querySelector(".poise-count");
    const parameters = new URLSearchParams(location.hash.slice(1));
    for (const name of ["words", "verdict", "room"]) form.elements[name].value = parameters.get(name) ?? "";

    const apply = () => {
      const words = form.elements.words.value.toLowerCase().split(/\s+/).filter(Boolean);
      const verdict = form.elements.verdict.value, room = form.elements.room.value;
      let claims = 0, studies = 0;
      for (const card of cards) {
        const text = card.textContent.toLowerCase();
        let shown = 0;
        for (const row of card.querySelectorAll("tbody tr")) {
          row.hidden = Boolean(verdict) && row.dataset.verdict !== verdict;
          shown += !row.hidden;
        }
        card.hidden = !shown || (room && card.dataset.room !== room) || !words.every((word) => text.includes(word));
        if (!card.hidden) { studies += 1; claims += shown; }
      }
      const plural = (n, one, many) => `${n} ${n === 1 ? one : many}`;
      count.textContent = `${plural(claims, "claim", "claims")} in ${plural(studies, "study", "studies")}`;
    };

    const remember = () => {
      const set = ["words", "verdict", "room"].filter((name) => form.elements[name].value);
      const hash = new URLSearchParams(set.map((name) => [name, form.elements[name].value])).toString();
      history.replaceState(null, "", hash ? `#${hash}` : location.pathname);
    };

    form.addEventListener("input", () => { apply(); remember(); });
    form.addEventListener("submit", (event) => event.preventDefault());
    form.addEventListener("reset", () => setTimeout(() => { apply(); remember(); }));
    apply();
  };

  document.readyState === "loading" ? addEventListener("DOMContentLoaded", start) : start();
})();
