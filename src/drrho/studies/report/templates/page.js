"use strict";
// Pictures are in the page once; filters show the cards that fit all choices of their gallery.
const pictures = JSON.parse(document.getElementById("pictures").textContent);
for (const image of document.querySelectorAll("img[data-picture]")) {
  image.src = pictures[image.dataset.picture];
}
for (const gallery of document.querySelectorAll("[data-gallery]")) {
  const apply = () => {
    const chosen = {};
    for (const input of gallery.querySelectorAll("input:checked, select")) {
      chosen[input.dataset.filter] = input.value;
    }
    let shown = 0;
    for (const card of gallery.querySelectorAll("[data-card]")) {
      const fits = Object.entries(chosen).every(
        ([name, value]) => value === "all" || !(name in card.dataset) || card.dataset[name] === value
      );
      card.hidden = !fits;
      if (fits && card.dataset.card === "pair") shown += 1;
    }
    for (const status of gallery.querySelectorAll("[role=status]")) {
      status.textContent =
        shown === 0 ? "No pair fits these choices." : `${shown} pairs shown.`;
    }
  };
  gallery.addEventListener("change", apply);
  apply();
}
