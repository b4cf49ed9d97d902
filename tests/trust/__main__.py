import gc

gc.disable()  # imports leave no garbage; `main` exempts what they leave

from trust.program import main  # noqa: E402

main()
