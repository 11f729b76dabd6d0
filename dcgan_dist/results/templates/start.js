// The table first; what needs the data further down waits until the whole page is there.

setUpTheme();
if (core.trials.length) {
  setUpBoard();
  const rest = () => {
    drawHero();
    setUpTrial();
    drawCompare();
    setUpSpace();
    setUpScaling();
  };
  if (document.readyState === "loading") addEventListener("DOMContentLoaded", rest);
  else rest();
}
