// One sound at a time; the waveform fills while it plays. Without this script the plain players stay.
"use strict";
for (const player of document.querySelectorAll(".player")) {
  const button = player.querySelector("button");
  const audio = player.querySelector("audio");
  const wave = player.querySelector(".wave");
  button.hidden = false;
  audio.hidden = true;
  const follow = () => {
    wave.style.setProperty("--played", `${(100 * audio.currentTime) / (audio.duration || 1)}%`);
    if (!audio.paused) requestAnimationFrame(follow);
  };
  const toggle = () => {
    if (!audio.paused) return audio.pause();
    document.querySelectorAll("audio").forEach((other) => other !== audio && other.pause());
    audio.currentTime = 0;
    audio.play();
  };
  button.addEventListener("click", toggle);
  wave.addEventListener("click", toggle);
  audio.addEventListener("play", () => { player.classList.add("playing"); follow(); });
  audio.addEventListener("pause", () => {
    player.classList.remove("playing");
    wave.style.setProperty("--played", "0%");
  });
}
