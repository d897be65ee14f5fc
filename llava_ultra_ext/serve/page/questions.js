// Template questions by site; a click puts one into Gradio's question box.

import { address } from "./files.js";

export async function mountQuestions(element) {
  const sites = await (await fetch(address("page/questions.json"))).json(); // [{ name, questions }]
  const choice = element.querySelector("select");
  choice.replaceChildren(...sites.map((site, place) => new Option(site.name, place)));
  const draw = () => {
    const buttons = sites[choice.value].questions.map((text) => {
      const button = Object.assign(document.createElement("button"), { type: "button", textContent: text });
      button.addEventListener("click", () => put(text));
      return button;
    });
    element.querySelector(".chips").replaceChildren(...buttons);
  };
  choice.addEventListener("change", draw);
  draw();
}

function put(text) {
  const box = document.querySelector("#question textarea");
  box.value = text;
  box.dispatchEvent(new Event("input", { bubbles: true }));
  box.focus();
}
